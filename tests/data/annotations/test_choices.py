"""Questions with candidates: JSON lines, A-OKVQA and VCR, and the mistakes in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from dimvl.data.annotations import Choice, read_choices
from dimvl.data.annotations.vcr import PEOPLE, region_names, vcr_boxes
from dimvl.errors import UserError
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.geometry import fractions_to_pixels
from tests.data.annotations.test_fuzz import VALUES

OWN = {"image": 7, "text": " what is it? ", "candidates": ["a star", "a circle ", "nothing"], "answer": 1}
AOKVQA = {"split": "train", "image_id": 299207, "question_id": "22Mex", "question": "What is the man awaiting?"}
AOKVQA |= {"choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3, "rationales": ["..."]}
VCR = {
    "objects": ["person", "chair", "person", "chair"],
    "img_fn": "lsmdc_1/a@0.jpg",
    "metadata_fn": "lsmdc_1/a@0.json",
    "annot_id": "val-0",
    "question": ["Why", "is", [0, 2], "on", [3], "?"],
    "answer_choices": [["To", "rest", "."], [[2], "fell", "."], ["No", "."], ["No", "."]],
    "answer_label": 1,
    "rationale_choices": [[[1], "broke", "."], ["It", "is", "late", "."], ["Who", "knows", "."], [[0], "smiles", "."]],
    "rationale_label": 0,
}
METADATA = {"boxes": [[10, 20, 30, 40, 0.9], [0, 0, 5, 80, 0.8], [50, 10, 100, 80, 0.7], [1, 2, 3, 4, 0.6]]}
METADATA |= {"width": 100, "height": 80}


def written(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_json_lines_have_candidates_and_the_place_of_the_right_one(tmp_path: Path) -> None:
    several = {"images": ["a.png", "b.png"], "times": [0, 2.5], "candidates": ["x", "y"], "id": "one"}
    items, form = read_choices(written(tmp_path / "own.jsonl", OWN, several))
    assert form == "JSON lines"
    assert items[0] == Choice(
        0, ("7",), "what is it?", ("a star", "a circle", "nothing"), 1, "", ("7",), written_ids=(7,)
    )
    assert items[0].texts == ("what is it? a star", "what is it? a circle", "what is it? nothing")
    assert (items[1].choice_id, items[1].image_ids, items[1].times) == ("one", ("a.png", "b.png"), (0.0, 2.5))
    assert (items[1].answer, items[1].texts) == (None, ("x", "y"))


def test_aokvqa_is_read_as_published_and_its_images_are_those_of_coco(tmp_path: Path) -> None:
    unanswered = {name: value for name, value in AOKVQA.items() if name != "correct_choice_idx"}
    path = tmp_path / "aokvqa_v1p0_val.json"
    path.write_text(json.dumps([AOKVQA, unanswered | {"question_id": "other"}]))
    items, form = read_choices(path)
    assert (form, [item.answer for item in items]) == ("A-OKVQA", [3, None])
    assert items[0].candidates == ("skateboarder", "train", "delivery", "cab")
    assert (items[0].choice_id, items[0].image_ids) == ("22Mex", ("299207",))
    assert items[0].file_names == ("000000299207.jpg",)


def test_vcr_asks_for_the_answer_and_for_the_rationale_of_the_right_answer(tmp_path: Path) -> None:
    items, form = read_choices(written(tmp_path / "val.jsonl", VCR))
    assert form == "VCR" and [item.part for item in items] == ["answer", "rationale-1"]
    question = "Why is casey and riley on chair 2 ?"
    assert (items[0].text, items[0].answer) == (question, 1)
    assert items[0].candidates == ("To rest .", "riley fell .", "No .", "No .")
    assert items[1].text == f"{question} riley fell ." and items[1].answer == 0
    assert items[1].candidates[::3] == ("chair broke .", "casey smiles .")
    assert all(item.image_ids == item.file_names == ("lsmdc_1/a@0.jpg",) for item in items)


def test_for_submissions_vcr_asks_for_the_rationale_of_every_answer(tmp_path: Path) -> None:
    unlabelled = {name: value for name, value in VCR.items() if "label" not in name} | {"annot_id": "test-0"}
    items = read_choices(written(tmp_path / "test.jsonl", VCR, unlabelled), every_answer=True).items
    parts = ["answer", *(f"rationale-{number}" for number in range(4))]
    assert [item.part for item in items] == 2 * parts
    assert [item.answer for item in items] == [1, None, 0, None, None, *[None] * 5]
    assert items[3].text.endswith("? No .")


def test_no_two_regions_of_an_image_share_a_name() -> None:
    names = region_names(["person"] * 40 + ["chair", "dog", "chair"])
    assert names[:14] == list(PEOPLE) and names[14] == "casey 2" and names[-3:] == ["chair", "dog", "chair 2"]
    assert len({*names}) == len(names) and len({*PEOPLE}) == 14


def test_boxes_of_vcr_have_the_names_and_the_order_of_its_objects(tmp_path: Path) -> None:
    path = written(tmp_path / "val.jsonl", VCR, {**VCR, "annot_id": "val-1"})
    (tmp_path / "lsmdc_1").mkdir()
    (tmp_path / "lsmdc_1" / "a@0.json").write_text(json.dumps(METADATA))
    (tmp_path / "boxes.json").write_text(json.dumps(vcr_boxes([path], tmp_path)))
    given = GivenBoxes.read(tmp_path / "boxes.json")
    [(image, boxes)] = given.boxes.items()
    assert image == "lsmdc_1/a@0.jpg"
    assert [given.classes[label] for label in given.labels[image]] == ["casey", "chair", "riley", "chair 2"]
    for box, (*expected, _) in zip(boxes, METADATA["boxes"], strict=True):
        assert fractions_to_pixels(box, 100, 80).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (METADATA["boxes"][:3], "has 3 boxes but .* has 4 objects; give the files that belong together"),
        ([[50, 60, 30, 20, 1], *METADATA["boxes"][1:]], "box 0 is .* not x1, y1, x2, y2 and a score within the image"),
        ([*METADATA["boxes"][:3], [90, 10, 130, 20, 1]], "box 3 is .*; correct it"),
        ([*METADATA["boxes"][:3], "here"], "box 3 is 'here'"),
    ],
)
def test_boxes_that_do_not_fit_their_image_or_objects_are_refused(tmp_path: Path, boxes: Any, says: str) -> None:
    (tmp_path / "lsmdc_1").mkdir()
    (tmp_path / "lsmdc_1" / "a@0.json").write_text(json.dumps({**METADATA, "boxes": boxes}))
    with pytest.raises(UserError, match=says):
        vcr_boxes([written(tmp_path / "val.jsonl", VCR)], tmp_path)


def test_a_metadata_file_outside_the_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside the folder"):
        vcr_boxes([written(tmp_path / "val.jsonl", {**VCR, "metadata_fn": "../a.json"})], tmp_path)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({**OWN, "candidates": ["a star"]}, "line 2 has only the candidate 'a star'; give at least two"),
        ({**OWN, "candidates": []}, "line 2 has no candidates; give at least two"),
        ({**OWN, "candidates": ["a", "b", " a"]}, "line 2: candidates 0 and 2 are both 'a'; change or remove one"),
        ({**OWN, "candidates": "a star"}, "candidates is 'a star', not a list"),
        ({**OWN, "candidates": ["a", " "]}, "candidate 1 of question 1 is empty"),
        ({**OWN, "candidates": ["a", 5]}, "candidate 1 of question 1 is 5, not text"),
        ({**OWN, "answer": 3}, "answer is 3; give the number of a candidate, 0 to 2"),
        ({**OWN, "answer": -1}, "answer is -1; give"),
        ({**OWN, "answer": True}, "answer is True; give"),
        ({**OWN, "answer": "a star"}, "answer is 'a star'; give the number"),
        ({**OWN, "text": ["a"]}, r"text of question 1 is \['a'\], not text"),
        ({"image": 7, "text": "what"}, "line 2 has no field 'candidates'"),
        ({**VCR, "annot_id": "1"}, "line 2 has no field 'image'"),
    ],
)
def test_a_mistake_in_json_lines_is_one_sentence_with_its_line(tmp_path: Path, record: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_choices(written(tmp_path / "own.jsonl", OWN, record))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": ["Why", [4], "?"]}, "line 2: question refers to object 4 of 4; give numbers from 0 of objects"),
        ({"question": ["Why", [-1]]}, "question refers to object -1 of 4"),
        ({"question": []}, "a text of question is empty; fix or remove it"),
        ({"question": "Why"}, "a text of question is 'Why', not a list"),
        ({"answer_choices": [["No"], ["No"], ["Yes"], ["."]]}, "answer_choices: candidates 0 and 1 are both 'No'"),
        ({"answer_choices": [["Yes"], ["No"], ["."], ["No"]]}, "answer_choices: candidates 1 and 3 are both 'No'"),
        ({"answer_label": 4}, "answer_label is 4; give the number of a candidate, 0 to 3"),
        ({"rationale_choices": [["Yes"]]}, "rationale_choices has only the candidate 'Yes'; give at least two"),
        ({"annot_id": "val-0"}, "annot_id 'val-0' appears twice"),
    ],
)
def test_a_mistake_in_vcr_is_one_sentence_with_its_line(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_choices(written(tmp_path / "val.jsonl", VCR, {**VCR, "annot_id": "val-1", **change}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"questions": []}, "is not a list of questions with choices, as in A-OKVQA; docs/annotations.md shows"),
        ([AOKVQA, AOKVQA], "item 1: question_id '22Mex' appears twice"),
        ([{**AOKVQA, "correct_choice_idx": 4}], "item 0: correct_choice_idx is 4; give the number of a candidate"),
        ([{**AOKVQA, "choices": ["cab"], "correct_choice_idx": 0}], "item 0 has only the candidate 'cab'"),
        ([{"question": "?"}], "item 0 has no field 'image_id'"),
    ],
)
def test_a_mistake_in_aokvqa_is_one_sentence_with_its_item(tmp_path: Path, content: Any, says: str) -> None:
    (tmp_path / "aokvqa.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        read_choices(tmp_path / "aokvqa.json")


@pytest.mark.parametrize(("record", "name"), [(OWN, "own.jsonl"), (VCR, "vcr.jsonl"), (AOKVQA, "aokvqa.json")])
def test_any_value_in_any_field_is_one_sentence_or_a_correct_read(
    tmp_path: Path, record: dict[str, Any], name: str
) -> None:
    for field in record:
        for value in VALUES:
            changed = json.dumps({**record, field: value})
            (tmp_path / name).write_text(f"[{changed}]" if name.endswith(".json") else changed)
            try:
                items = read_choices(tmp_path / name, every_answer=True).items
            except UserError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error) and str(error).encode()
                continue
            for item in items:
                assert len(item.candidates) >= 2 and all(text.strip() and text.encode() for text in item.texts)
                assert item.answer is None or 0 <= item.answer < len(item.candidates)
                assert all(type(image) is str and image for image in item.image_ids)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in a format of questions with candidates that dimvl knows; docs/"):
        read_choices(written(tmp_path / "val.csv", "a,b"))
