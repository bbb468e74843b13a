"""Arrays that are computed once and kept in a file."""

import numpy as np

from dimvl.errors import UserError
from dimvl.files import kept
from dimvl.files.kept import kept_array


def test_an_array_is_computed_once_and_again_if_what_it_depends_on_or_its_file_changed(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(3) + len(calls)

    first = kept_array(tmp_path, "sums", ("a", 1), compute)
    assert kept_array(tmp_path, "sums", ("a", 1), compute).tolist() == first.tolist() == [1, 2, 3]
    assert kept_array(tmp_path, "sums", ("a", 2), compute).tolist() == [2, 3, 4]
    for file in tmp_path.glob("sums-*.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert kept_array(tmp_path, "sums", ("a", 1), compute).tolist() == [3, 4, 5]


def test_what_cannot_be_written_is_kept_in_memory_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(_):
        raise UserError("the folder cannot be written")

    monkeypatch.setattr(kept, "atomic_path", refuse)
    assert kept_array(tmp_path, "sums", (), lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert "the folder cannot be written; each process computes and keeps its own sums" in caplog.text
