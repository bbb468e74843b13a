import numpy as np
import pytest

from dimvl.data.trained_on import FILE, NOTHING, read_trained_on, trained_images, write_trained_on
from dimvl.errors import UserError


def test_images_are_known_again_with_those_of_what_a_run_started_from(tmp_path):
    write_trained_on(tmp_path / "first", ["b", "a", "a"], NOTHING)
    first = read_trained_on(tmp_path / "first")
    write_trained_on(tmp_path / "second", ["c", "a"], first)
    second = read_trained_on(tmp_path / "second")
    assert trained_images(["a", "d", "b", "a"], second) == ["a", "b"]
    assert trained_images(["c"], first) == [] and trained_images(["c"], second) == ["c"]
    assert second.dtype == np.uint64 and len(second) == 3 and (np.diff(second.astype(object)) > 0).all()


def test_the_file_has_eight_bytes_for_each_image(tmp_path):
    write_trained_on(tmp_path, map(str, range(1000)), NOTHING)
    assert (tmp_path / FILE).stat().st_size == 128 + 8 * 1000


@pytest.mark.parametrize(
    ("trained", "asked", "same"),
    [
        ("COCO_val2014_000000391895", "391895", True),
        ("000000391895", "COCO_val2014_000000391895.jpg", True),
        ("coco_val2014_000000391895", "391895", True),
        ("1000092795.jpg", "1000092795", True),
        ("train/12", "val/12", False),
        ("12", "img_12", False),
    ],
)
def test_an_image_is_known_under_other_file_names_of_coco(tmp_path, trained, asked, same):
    write_trained_on(tmp_path, [trained], NOTHING)
    assert bool(trained_images([asked], read_trained_on(tmp_path))) is same


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_a_missing_or_damaged_file_is_one_sentence(tmp_path, content):
    with pytest.raises(UserError, match=f"{FILE} does not exist"):
        read_trained_on(tmp_path)
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_trained_on(tmp_path)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), np.uint64), np.array([{}], dtype=object)])
def test_other_arrays_are_refused_and_nothing_is_unpickled(tmp_path, array):
    np.save(tmp_path / FILE, array, allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        read_trained_on(tmp_path)
