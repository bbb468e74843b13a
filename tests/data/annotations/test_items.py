"""Items to classify: the files of NLVR2, NLVR, SNLI-VE and GQA, own JSON lines, A-OKVQA, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dimvl.data.annotations import read_items, read_questions
from dimvl.errors import UserError


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def nlvr2(identifier: str = "dev-850-0-1", **changes: Any) -> dict[str, Any]:
    own = {"identifier": identifier, "sentence": "Both show a dog. ", "left_url": "l", "right_url": "r"}
    return own | {"label": "True"} | changes


def nlvr(identifier: str = "1572-0", **changes: Any) -> dict[str, Any]:
    boxes = [[{"x_loc": 1, "y_loc": 2, "size": 20, "color": "Yellow", "type": "square"}], [], []]
    return {"identifier": identifier, "sentence": "A box.", "label": "false", "structured_rep": boxes} | changes


def snli_ve(pair: str = "47.jpg#2r1n", **changes: Any) -> dict[str, Any]:
    return {"pairID": pair, "Flickr30K_ID": "047", "sentence2": "Two women.", "gold_label": "neutral"} | changes


def gqa(**changes: Any) -> dict[str, Any]:
    own = {"imageId": "n17", "question": "Is it red?", "answer": "yes", "isBalanced": True, "entailed": ["8", "7"]}
    return own | {"types": {"structural": "verify", "detailed": "isAttr"}} | changes


def test_a_pair_of_nlvr2_has_two_images_and_the_group_of_its_sentence(tmp_path: Path) -> None:
    records = [nlvr2(), nlvr2("dev-850-1-1", label="False"), nlvr2("dev-850-1-0", label="false"), nlvr2("t-1-0-0")]
    del records[3]["label"]
    form, items = read_items(lines(tmp_path / "dev.json", records))
    assert form == "NLVR2"
    assert items[0].image_ids == ("dev-850-0-img0", "dev-850-0-img1")
    assert items[0].file_names == ("dev-850-0-img0.png", "dev-850-0-img1.png")
    assert [item.labels for item in items] == [("true",), ("false",), ("false",), None]
    assert items[0].text == "Both show a dog." and items[0].group == items[1].group != items[2].group


def test_a_statement_of_nlvr_has_the_three_boxes_as_images(tmp_path: Path) -> None:
    form, items = read_items(lines(tmp_path / "dev.json", [nlvr(), nlvr("1572-3"), nlvr("9-0", label="true")]))
    assert form == "NLVR" and items[0].image_ids == ("1572-0-box0", "1572-0-box1", "1572-0-box2")
    assert items[0].group == items[1].group != items[2].group and items[2].labels == ("true",)


def test_a_pair_of_snli_ve_on_which_people_disagree_has_no_label(tmp_path: Path) -> None:
    form, items = read_items(lines(tmp_path / "a.jsonl", [snli_ve(), snli_ve("b", gold_label="-")]))
    assert form == "SNLI-VE" and [item.labels for item in items] == [("neutral",), None]
    assert (items[0].image_ids, items[0].file_names, items[0].text) == (("047",), ("047.jpg",), "Two women.")


def test_a_question_of_gqa_has_its_kind_what_it_entails_and_its_choices(tmp_path: Path) -> None:
    content = {"7": gqa(), "8": gqa(types={"structural": "query", "detailed": "twoCommon"}, isBalanced=False)}
    choices = {"7": {"valid": ["yes", "no"], "plausible": ["no"]}}
    (tmp_path / "q.json").write_text(json.dumps(content))
    (tmp_path / "c.json").write_text(json.dumps(choices))
    form, (one, two) = read_items(tmp_path / "q.json", tmp_path / "c.json")
    assert form == "GQA" and (one.kind, two.kind) == ("binary", "open") and (one.scored, two.scored) == (True, False)
    assert one.entailed == ("8",), "a question does not entail itself"
    assert dict(one.accepted) == {"validity": {"yes", "no"}, "plausibility": {"no"}}
    assert dict(two.accepted)["plausibility"] == ("color", "material", "shape"), "as the official program has it"
    del choices["7"]
    (tmp_path / "c.json").write_text(json.dumps(choices))
    with pytest.raises(UserError, match="has no field '7'; give the file of choices of the same questions"):
        read_items(tmp_path / "q.json", tmp_path / "c.json")


def test_own_lines_may_have_no_text_several_labels_or_none(tmp_path: Path) -> None:
    records = [
        {"image": 3, "label": "cat"},
        {"images": ["a", "b"], "text": "alike ", "labels": ["x", "y"], "times": [0, 2], "id": "i"},
        {"image": "c", "labels": []},
        {"image": "c"},
        {"image": "c", "label": 7},
    ]
    form, items = read_items(lines(tmp_path / "a.jsonl", records))
    assert form == "JSON lines" and [item.labels for item in items] == [("cat",), ("x", "y"), (), None, ("7",)]
    assert [item.text for item in items] == ["", "alike", "", "", ""] and items[1].times == (0.0, 2.0)
    assert [item.item_id for item in items] == [0, "i", 2, 3, 4] and [i.numbered for i in items][:2] == [True, False]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (nlvr2("dev-850-1"), "line 1: identifier 'dev-850-1' is not split-set-pair-sentence, such as dev-850-0-1"),
        (nlvr2(label="maybe"), "line 1: label 'maybe' is neither true nor false; correct it"),
        (nlvr2(sentence=" "), "sentence dev-850-0-1 is empty"),
        (nlvr("a-b-c"), "is not two numbers, such as 1572-0; correct it"),
        (nlvr(structured_rep=[[]]), "structured_rep has 1 boxes; give the objects of all three"),
        (snli_ve(gold_label="maybe"), "gold_label 'maybe' is not contradiction, entailment, neutral or '-'"),
        (snli_ve(Flickr30K_ID=None), "Flickr30K_ID None is not an id"),
        ({"image": 1, "label": ""}, "a label is empty"),
        ({"image": 1, "label": "a", "labels": ["b"]}, "has both label and labels; keep one"),
        ({"image": 1, "labels": ["b", "b"]}, "label 'b' appears twice; remove one"),
        ({"image": 1, "labels": "b"}, "labels is 'b', not a list"),
        ({"image": 1, "text": "\u200b"}, "text is empty ('\\u200b'); give words, or omit it"),
        ({"image": 1, "text": 3.5}, "text is 3.5, not text"),
    ],
)
def test_a_mistake_in_items_is_one_sentence_with_its_place(record: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_items(lines(tmp_path / "a.jsonl", [record]))
    assert "a.jsonl, line 1" in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("record", [nlvr2(), nlvr(), snli_ve()])
def test_an_id_twice_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2: (identifier|pairID) .* appears twice"):
        read_items(lines(tmp_path / "a.jsonl", [record, record]))


def test_files_of_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="is not in a format of items to classify that dimvl knows"):
        read_items(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"7": {"question": "q"}}')
    with pytest.raises(UserError, match=r"a.json: question 7 has no field 'imageId'"):
        read_items(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"is JSON lines, and the choices .* belong to GQA; omit choices"):
        read_items(lines(tmp_path / "a.jsonl", [{"image": 1}]), tmp_path / "a.json")


def test_the_questions_of_a_okvqa_and_ok_vqa_are_read_for_question_answering(tmp_path: Path) -> None:
    own = {
        "split": "val",
        "image_id": 461751,
        "question_id": "22jbM6",
        "question": "What is it?",
        "choices": ["a", "b"],
    }
    own |= {"correct_choice_idx": 1, "direct_answers": ["b"] * 9 + ["c"], "rationales": []}
    (tmp_path / "a.json").write_text(json.dumps([own]))
    [question] = read_questions(tmp_path / "a.json")
    assert (question.question_id, question.image_ids, question.text) == ("22jbM6", ("461751",), "What is it?")
    assert question.answers == ("b",) * 9 + ("c",)
    with pytest.raises(UserError, match=r"contains its own answers; remove the annotations"):
        read_questions(tmp_path / "a.json", tmp_path / "a.json")
    asked = {"image_id": 51606, "question": "What is the hairstyle?", "question_id": 516065}
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": [asked]}))
    answers = [{"answer_id": 1, "raw_answer": "pony tail", "answer_confidence": "yes", "answer": "pony tail"}]
    answered = {"image_id": 51606, "answer_type": "other", "question_type": "four", "question_id": 516065}
    (tmp_path / "n.json").write_text(json.dumps({"annotations": [answered | {"answers": answers * 10}]}))
    [question] = read_questions(tmp_path / "q.json", tmp_path / "n.json")
    assert question.answers == ("pony tail",) * 10 and question.kind == "four"
