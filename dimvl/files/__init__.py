"""Files: read with care, written whole, sealed with checksums.

reading.py    the opener of every file that comes from outside: regular, of bounded size, checked
writing.py    atomic writes and locks
checksums.py  JSON files that carry their own checksum, and the checksums of a folder
"""

from dimvl.files.checksums import (
    CHECKSUMS,
    check_folder,
    folder_checksums,
    read_sealed,
    seal_folder,
    sha256,
    write_sealed,
)
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
)
from dimvl.files.writing import (
    atomic_folder,
    atomic_path,
    check_writable,
    git_revision,
    locked,
    open_own,
    write_json,
    writing,
)

__all__ = [
    "CHECKSUMS",
    "HUB_NAME",
    "Strict",
    "atomic_folder",
    "atomic_path",
    "check_folder",
    "check_values",
    "check_writable",
    "folder_checksums",
    "git_revision",
    "inside",
    "locked",
    "open_own",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_as",
    "read_sealed",
    "read_text",
    "seal_folder",
    "sha256",
    "write_json",
    "write_sealed",
    "writing",
]
