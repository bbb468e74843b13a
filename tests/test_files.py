import errno
import os

import pytest

from dimvl.errors import UserError
from dimvl.files import atomic_folder, atomic_path


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
