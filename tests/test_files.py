import os

from dimvl.files import atomic_path


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
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
