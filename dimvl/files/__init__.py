"""Files: read with care, written whole, sealed with checksums.

paths.py      paths that a user gives: `~`, and what must exist
reading.py    the opener of every file that comes from outside: regular, of bounded size, checked
writing.py    atomic writes and locks
checksums.py  JSON files that carry their own checksum, and the checksums of a folder
weights.py    safetensors; imported on its own, since it needs torch
kept.py       arrays that are computed once; imported on its own, since it needs numpy
"""

from dimvl.files.checksums import (
    CHECKSUMS,
    RESTORE,
    FileChecksum,
    Sha256,
    check_folder,
    folder_checksums,
    read_lines,
    read_sealed,
    read_sealed_as,
    seal_folder,
    sealed_line,
    sha256,
    write_sealed,
)
from dimvl.files.paths import existing, existing_file, existing_folder, folder_or_hub_name, is_url, local_path, matching
from dimvl.files.reading import (
    HUB_NAME,
    Strict,
    check_values,
    inside,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_json_as,
    read_text,
    reading,
)
from dimvl.files.writing import (
    atomic_folder,
    atomic_path,
    check_writable,
    git_revision,
    is_locked,
    locked,
    open_own,
    pinned,
    remove_unpinned,
    write_json,
    writing,
)

__all__ = [
    "CHECKSUMS",
    "HUB_NAME",
    "RESTORE",
    "FileChecksum",
    "Sha256",
    "Strict",
    "atomic_folder",
    "atomic_path",
    "check_folder",
    "check_values",
    "check_writable",
    "existing",
    "existing_file",
    "existing_folder",
    "folder_checksums",
    "folder_or_hub_name",
    "git_revision",
    "inside",
    "is_locked",
    "is_url",
    "local_path",
    "locked",
    "matching",
    "open_own",
    "open_regular",
    "parse_json",
    "pinned",
    "read_bytes",
    "read_json",
    "read_json_as",
    "read_lines",
    "read_sealed",
    "read_sealed_as",
    "read_text",
    "reading",
    "remove_unpinned",
    "seal_folder",
    "sealed_line",
    "sha256",
    "write_json",
    "write_sealed",
    "writing",
]
