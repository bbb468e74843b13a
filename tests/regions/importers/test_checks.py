"""Which values are rejected or clipped, and how the unit of boxes is recognised."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler, Entry
from dimvl.regions.importers.given import Sizes, number_of
from dimvl.regions.importers.tsv import lxmert_tsv
from dimvl.regions.vocabulary import Vocabulary
from tests.regions.importers.written import b64, image_of, lxmert_line, write_sizes

VOCABULARY = Vocabulary(("cat", "dog"), {"cat": 0, "dog": 1})


def assemble(boxes, *, assembler=None, size=(64, 32), features=None, **arguments):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    features = np.zeros((len(boxes), 3), dtype=np.float32) if features is None else features
    return (assembler or Assembler()).regions("img-1", boxes=boxes, features=features, size=size, **arguments)


# Units


@pytest.mark.parametrize(
    ("boxes", "fractions"),
    [
        ([[8, 8, 16, 16]], [[0.125, 0.25, 0.25, 0.5]]),
        ([[0.125, 0.25, 0.25, 0.5]], [[0.125, 0.25, 0.25, 0.5]]),
        ([[0, 0, 1, 1]], [[0, 0, 1, 1]]),
        ([[0, 0, 1.004, 1]], [[0, 0, 1, 1]]),  # rounding of fractions
        ([[0.5, 0.5, 2.5, 2]], [[0.5 / 64, 0.5 / 32, 2.5 / 64, 2 / 32]]),
        ([[0, 0, 64.9, 32.9]], [[0, 0, 1, 1]]),  # rounding of pixels
        ([[-0.9, -0.9, 64, 32]], [[0, 0, 1, 1]]),
        ([[8, 8, 8, 16]], [[0.125, 0.25, 0.125, 0.5]]),  # one pixel wide in older code
        ([], np.zeros((0, 4))),
    ],
)
def test_pixels_and_fractions_are_distinguished_and_rounding_is_clipped(boxes, fractions):
    got = assemble(boxes).boxes
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.array(fractions), rtol=1e-6)


def test_all_images_of_a_source_have_one_unit():
    assembler = Assembler()
    assemble([[0, 0, 0.5, 0.5]], assembler=assembler)
    with pytest.raises(UserError, match=r"has boxes in pixels \(they reach to 16\).*before it are in fractions"):
        assemble([[8, 8, 16, 16]], assembler=assembler)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([8, 8, np.nan, 16], r"box 1 \(8, 8, nan, 16\) with a corner that is not finite"),
        ([8, -np.inf, 9, 16], r"box 1 \(8, -inf, 9, 16\) with a corner that is not finite"),
        ([16, 8, 8, 16], r"box 1 \(16, 8, 8, 16\) with swapped corners"),
        ([8, 16, 16, 8], r"box 1 \(8, 16, 16, 8\) with swapped corners"),
        ([8, 8, 80, 16], r"box 1 \(8, 8, 80, 16\) with a corner outside the image of 64 x 32 pixels"),
        ([8, -3, 16, 16], r"box 1 \(8, -3, 16, 16\) with a corner outside"),
        ([8, 8, 16, 40], r"box 1 \(8, 8, 16, 40\) with a corner outside"),
        ([8, 8, 3e38, 40], r"box 1 \(8, 8, 3e\+38, 40\) with a corner outside"),
    ],
)
def test_an_invalid_box_is_rejected_with_image_and_value(box, message):
    with pytest.raises(UserError, match=f"^image 'img-1' has {message}"):
        assemble([[0, 0, 4, 4], box])


def test_fractions_outside_the_image_are_rejected_where_the_format_defines_fractions():
    with pytest.raises(UserError, match="corner outside the image"):
        assemble([[0, 0, 1.3, 1]], unit="fractions")


def test_boxes_that_are_neither_fractions_nor_pixels_are_rejected():
    with pytest.raises(UserError, match=r"'img-1' has boxes that reach to 1.3: neither fractions"):
        assemble([[0, 0, 1.3, 1]])


def test_pixels_without_a_size_ask_for_sizes():
    with pytest.raises(UserError, match="'img-1' has boxes in pixels but no known size; give --sizes"):
        assemble([[8, 8, 16, 16]], size=None)


@pytest.mark.parametrize("size", [(0, 32), (64, -1), (64, 10**7)])
def test_an_invalid_size_is_rejected(size):
    with pytest.raises(UserError, match=rf"'img-1' has size {size[0]} x {size[1]}"):
        assemble([[0, 0, 1, 1]], size=size)


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_a_feature_that_is_not_finite_in_half_precision_is_rejected(value):
    features = np.zeros((2, 3), dtype=np.float32)
    features[1, 2] = value
    with pytest.raises(UserError, match=rf"'img-1' has the feature value {re.escape(f'{value:.6g}')} in region 1"):
        assemble([[0, 0, 1, 1]] * 2, features=features)


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        ([2], [0.5], "class id 2, but the vocabulary has 2 names"),
        ([-2], [0.5], "class id -2, but"),
        ([2**40], [0.5], f"class id {2**40}, but"),
        ([1], [1.5], "class score 1.5, which is not a probability"),
        ([1], [np.nan], "class score nan, which is not a probability"),
        ([1], [-0.5], "class score -0.5, which is not a probability"),
        ([1, 0], [0.5, 0.5], r"class arrays of shape \(2,\) for 1 regions"),
        ([[1, 0]], [[0.5]], r"class score of shape \(1, 1\), not \(1, 2\)"),
        ([1.0], [0.5], "class ids of type float64"),
    ],
)
def test_invalid_classes_are_rejected(ids, scores, message):
    with pytest.raises(UserError, match=f"^image 'img-1' has .*{message}"):
        assemble([[0, 0, 1, 1]], assembler=Assembler(VOCABULARY), classes=(np.array(ids), np.array(scores)))


def test_regions_without_score_have_no_class():
    classes = (np.array([1, 0]), np.array([0.5, 0.0]))
    got = assemble([[0, 0, 1, 1]] * 2, assembler=Assembler(VOCABULARY), classes=classes)
    assert got.class_ids.tolist() == [[1], [-1]]


def test_regions_of_one_score_keep_their_order():
    features = np.arange(40, dtype=np.float32).reshape(20, 2)
    got = assemble([[0, 0, 1, 1]] * 20, features=features, confidence=np.repeat([0.25, 0.5], 10))
    assert got.features[:, 0].tolist() == [*range(20, 40, 2), *range(0, 20, 2)]


@pytest.mark.parametrize(("columns", "ids"), [(2, [0, 1]), (3, [1, 0])])
def test_a_distribution_with_one_more_class_than_names_has_the_background_first(columns, ids):
    probabilities = np.array([[0.5, 0.125, 0.25]], dtype=np.float16)[:, :columns]
    found = Assembler(VOCABULARY).dense_classes("img-1", probabilities)
    assert found[0].tolist() == [ids]


def test_a_distribution_over_other_classes_than_the_vocabulary_is_rejected():
    with pytest.raises(UserError, match=r"class probabilities of shape \(1, 5\), but the class vocabulary has 2 names"):
        Assembler(VOCABULARY).dense_classes("img-1", np.zeros((1, 5)))


# Sizes


def test_sizes_are_found_by_file_name_id_and_number(tmp_path):
    file = tmp_path / "sizes.json"
    images = [
        {"id": 71, "width": 10, "height": 20, "file_name": "COCO_val2014_000000000071.jpg"},
        {"id": 72, "width": 30, "height": 40},
    ]
    file.write_text(json.dumps({"images": images}))
    sizes = Sizes(file)
    assert sizes.of("COCO_val2014_000000000071") == sizes.of("71") == sizes.of("coco_val_0071") == (10, 20)
    assert sizes.of("coco_train2014_000000000072") == (30, 40)
    with pytest.raises(UserError, match=r"sizes.json lack image 'cat'"):
        sizes.of("cat")


@pytest.mark.parametrize("content", ["[]", '{"images": [{"id": 1}]}', '{"images": [{"id": 1, "width": "x"}]}', "{"])
def test_sizes_of_another_form_are_rejected(content, tmp_path):
    (tmp_path / "sizes.json").write_text(content)
    with pytest.raises(UserError, match=r"sizes.json"):
        Sizes(tmp_path / "sizes.json")


def test_a_size_that_differs_from_the_source_is_rejected(tmp_path):
    regions = image_of(0)
    sizes = Sizes(write_sizes(tmp_path / "sizes.json", [regions]))
    with pytest.raises(UserError, match=r"is 5 x 5 in the source but 32 x 128 in .*sizes.json"):
        Assembler(sizes=sizes).size(regions.image_id, (5, 5))


@pytest.mark.parametrize(
    ("image_id", "number"),
    [
        ("COCO_val2014_000000000071", "71"),
        ("000", "0"),
        ("17", "17"),
        ("dev-850-0-img0", "0"),
        ("cat", None),
        ("٣", None),
    ],
)
def test_the_number_at_the_end_of_an_id(image_id, number):
    assert number_of(image_id) == number


# Lines


def read_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.tsv").write_bytes(line)
    for entry in lxmert_tsv(tmp_path / "x.tsv", Assembler(VOCABULARY)).entries():
        entry.read()


GOOD = lxmert_line(image_of(1)).split("\t")


def changed(column: int, value: str) -> bytes:
    return "\t".join([*GOOD[:column], value, *GOOD[column + 1 :]]).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (changed(9, GOOD[9][:-6]), "features has 26 bytes|features is not base64"),
        (changed(9, GOOD[9][:-2] + "%%"), "features is not base64"),
        (changed(9, b64(np.zeros(7, dtype="<f4"))), "features has 28 bytes, which are not rows of float32 for 2 boxes"),
        (changed(8, b64(np.zeros(7, dtype="<f4"))), "boxes has 28 bytes for 8 numbers of 4 bytes each"),
        (changed(3, b64(np.zeros(3, dtype="<i8"))), "objects_id has 24 bytes for 2 numbers of 8 bytes each"),
        (changed(7, "3"), "objects_id has 16 bytes for 3"),
        (changed(7, "-1"), "num_boxes is -1, not 0 to 100,000"),
        (changed(7, "9" * 5000), "num_boxes is b'9999"),
        (changed(7, "999999999999"), "num_boxes is 999999999999"),
        (changed(1, "tall"), "img_h is b'tall'"),
        (changed(2, "0"), "has size 0 x 32"),
        ("\t".join(GOOD[:9]).encode(), "has 9 columns, not 10"),
        (b"no tab at all", "line 1 of .*x.tsv does not start with an image id"),
        (b"\xff\xfe\t1\t2", "line 1 of .*x.tsv does not start with an image id"),
        (b"x" * 5000 + b"\t1", "line 1 of .*x.tsv does not start with an image id"),
    ],
)
def test_a_damaged_line_is_named(line, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_line(tmp_path, line)


def test_any_error_of_a_decoder_becomes_a_sentence_with_the_image():
    def decode():
        raise ZeroDivisionError("oh")

    with pytest.raises(UserError, match="image 'x' cannot be read \\(ZeroDivisionError: oh\\)"):
        Entry("x", decode, 1).read()
