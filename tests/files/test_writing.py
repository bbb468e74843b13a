import errno
import logging
import os
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from dimvl.errors import UserError
from dimvl.files import atomic_folder, atomic_path, locked, open_own


def test_a_file_is_on_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def note_sync(handle):
        done.append(("on disk", os.fstat(handle).st_ino))
        sync(handle)

    def note_replace(source, target):
        done.append(("in place", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("content")
        inode = temporary.stat().st_ino
    assert done == [("on disk", inode), ("in place", inode)] and (tmp_path / "file").read_text() == "content"


def test_a_folder_can_be_kept_if_it_exists_and_a_full_disk_is_still_reported(tmp_path, monkeypatch):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "folder", replace=False) as temporary:
            (temporary / "file").write_text(content)
    assert (tmp_path / "folder" / "file").read_text() == "first"

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    sentence = r"cannot write .*other: No space left on device"
    with pytest.raises(UserError, match=sentence), atomic_folder(tmp_path / "other", replace=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_files_follow_the_umask_whatever_library_wrote_them(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)  # writes to a private file of its own and renames it
        with atomic_folder(tmp_path / "folder") as temporary:
            save_file({"a": torch.zeros(1)}, temporary / "inside")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert modes == {"file": "0o640", "folder": "0o750", "inside": "0o640"}


def test_a_link_inside_a_folder_of_dimvl_is_never_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "index.bin").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"), open_own(tmp_path / "index.bin", "r+b"):
        pass
    with atomic_path(tmp_path / "index.bin") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / "index.bin").read_text() == "new"


def test_a_process_that_waits_for_another_says_so_once_and_goes_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sys.modules[locked.__module__], "SILENT", 0.0)
    caplog.set_level(logging.INFO)
    entered = []

    def wait():
        with locked(tmp_path):
            entered.append(True)

    waiting = threading.Thread(target=wait)
    with locked(tmp_path):
        waiting.start()
        waiting.join(0.25)
        assert not entered
    waiting.join(10)
    assert entered and [record.message for record in caplog.records] == [
        f"waiting for another process that writes in {tmp_path}"
    ]
