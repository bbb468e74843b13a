"""Numbers of another type or unit than a format usually has: recognised, or told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.importers.facts import Facts
from dimvl.regions.importers.tsv import float_type
from dimvl.regions.records import Regions
from tests.regions.importers.written import (
    assembler_of,
    b64,
    by_id,
    image_of,
    import_file,
    lxmert_line,
    pixels,
    with_six,
    write_oscar_captioning,
    write_tsv,
)

WIDE = replace(image_of(1), features=np.random.default_rng(0).normal(size=(2, 64)).astype(np.float16))


def line_of(regions: Regions, dtype: str, boxes: str = "<f4") -> str:
    columns = lxmert_line(regions).split("\t")
    columns[8:] = b64(pixels(regions)[::-1].astype(boxes)), b64(regions.features[::-1].astype(dtype))
    return "\t".join(columns)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_features_of_another_width_in_bytes_are_recognised_and_told(dtype: str, tmp_path: Path, caplog) -> None:
    (tmp_path / "x.tsv").write_text(line_of(WIDE, dtype, boxes=dtype) + "\n")
    name = np.dtype(dtype).name
    report = import_file(tmp_path / "x.tsv", tmp_path / "out")
    assert report.facts.startswith(f"features: 64 wide, {name} in the source, values ")
    assert (f"are {name}, not float32" in caplog.text) == (dtype != "<f4")
    got = by_id(tmp_path / "out")["17"]
    np.testing.assert_array_equal(got.features, WIDE.features)
    np.testing.assert_allclose(got.boxes, WIDE.boxes, atol=1e-3)


@pytest.mark.parametrize("as_objects", [False, True], ids=["rows", "objects"])
def test_float16_of_oscar_is_recognised(as_objects: bool, tmp_path: Path) -> None:
    rows = with_six(WIDE).astype("<f2")
    line: tuple[object, ...] = ("17", json.dumps({"num_boxes": 2, "features": b64(rows)}))
    if as_objects:
        boxes = pixels(WIDE)[::-1].tolist()
        objects = [{"rect": box, "class": "", "feature": b64(row)} for box, row in zip(boxes, rows, strict=True)]
        line = ("17", json.dumps({"image_w": 64, "image_h": 32, "objects": objects}))
    import_file(write_tsv(tmp_path / "feature.tsv", [line]), tmp_path / "out")
    np.testing.assert_array_equal(by_id(tmp_path / "out")["17"].features[::-1, :64], WIDE.features)


KINDS = {
    "normal": lambda random: random.normal(size=1000),
    "after a rectifier, sparse": lambda random: np.maximum(random.normal(size=1000) - 1, 0),
    "of unit length": lambda random: random.normal(size=1000) / 45,
    "narrow": lambda random: 1 + random.random(1000),
    "large": lambda random: 100 * random.exponential(size=1000),
    "halves": lambda random: random.normal(size=1000).astype(np.float16),
    "of nine bits": lambda random: (1 + random.integers(0, 512, 1000) / 512) * 2.0 ** random.integers(-3, 3, 1000),
    "bfloat16": lambda random: (random.normal(size=1000).astype("<f4").view("<u4") & 0xFFFF0000).view("<f4"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_the_type_of_features_is_told_from_their_bytes(kind: str, dtype: str) -> None:
    for seed in range(5):
        values = KINDS[kind](np.random.default_rng(seed))
        assert float_type(values.astype(dtype).tobytes()) == dtype


def test_a_few_numbers_are_never_taken_for_a_smaller_type() -> None:
    """Numbers with the bits of float16 only, so that half of each is alike in many; and few that are not zero."""
    for seed in range(400):
        random = np.random.default_rng(seed)
        for values in (random.normal(size=24), 5 + 0.1 * random.random(24)):
            assert float_type(values.astype("<f2").astype("<f4").tobytes()) in (None, "<f4")
        sparse = np.maximum(random.normal(size=256) - 1, 0)
        assert float_type(sparse.tobytes()) != "<f2"


def test_too_few_numbers_tell_no_type() -> None:
    assert float_type(np.zeros(1000, dtype="<f4").tobytes()) is None
    wide = np.exp(20 * np.random.default_rng(0).normal(size=100)).astype("<f4")
    assert float_type(wide.tobytes()) == "<f4"  # as usual, since no type fits
    assert float_type(b"") is None and float_type(np.ones(10, dtype="<f4").tobytes()) is None


def test_labels_in_fractions_are_not_compared_with_pixels(tmp_path: Path) -> None:
    folder = write_oscar_captioning(tmp_path, [image_of(1)])
    labels = [{"rect": box, "class": "cat", "conf": 0.5} for box in image_of(1).boxes.tolist()]
    write_tsv(folder / "train.label.tsv", [("17", json.dumps(labels))])
    assembler_of(tmp_path)
    with pytest.raises(UserError, match=r"labels whose boxes reach to .*: fractions where pixels belong"):
        import_file(folder, tmp_path / "out", classes=tmp_path / "classes.txt")


def test_a_store_without_any_class_is_told(tmp_path: Path, caplog) -> None:
    folder = write_oscar_captioning(tmp_path, [image_of(1)])
    write_tsv(folder / "train.label.tsv", [("17", json.dumps([{"rect": [9, 9, 10, 10], "class": "cat", "conf": 0.5}]))])
    assembler_of(tmp_path)
    report = import_file(folder, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert "no region has a class" in caplog.text and report.facts.endswith("0 % of regions with a class")


def test_the_facts_of_an_import_are_counted() -> None:
    facts = Facts(("ant", "bee", "cat"))
    facts.add(np.array([[0, 0], [-1, 3]], dtype=np.float64), np.array([[-1], [2]]))
    facts.add(np.array([[0.5, 0]] * 3, dtype=np.float16), np.array([[1], [1], [-1]]))
    facts.add(np.zeros((0, 0), dtype=np.float32), np.zeros((0, 1)))
    assert str(facts) == (
        "features: 2 wide, float16 and float64 in the source, values -1 to 3, 20 % of rows all zero; 0 to 3 regions "
        "per image (mean 1.667), 1 images without regions; 60 % of regions with a class, most "
        "often bee, cat"
    )
