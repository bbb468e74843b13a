import json
from pathlib import Path
from typing import Any

import pytest

from dimvl.errors import UserError
from dimvl.metrics.predictions import images_of, official_images, read_answers, read_predicted_captions

QUESTIONS = (7, 3, 9)
BY_ID = {name: ((name,), ()) for name in ("b", "5", "1")}


def write(folder: Path, content: Any) -> Path:
    path = folder / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def answers(*question_ids: Any) -> list[dict[str, Any]]:
    return [{"question_id": question_id, "answer": f"answer {question_id}"} for question_id in question_ids]


def test_answers_are_in_the_order_of_the_questions(tmp_path: Path) -> None:
    records = answers(9, 7, 3)
    records[1] |= {"answer": "", "more": [1]}
    found = read_answers(write(tmp_path, records), QUESTIONS)
    assert list(found.items()) == [(7, ""), (3, "answer 3"), (9, "answer 9")]


def test_ids_as_text_and_as_numbers_are_the_same_unless_the_text_has_more_than_the_digits(tmp_path: Path) -> None:
    questions, given = ("71", "072", 73, 74, "n5"), (71, "072", "73", 74.0, "n5")
    path = write(tmp_path, answers(*given))
    assert read_answers(path, questions) == {own: f"answer {each}" for own, each in zip(questions, given, strict=True)}
    for other in (72, "+72", "0072", "72 "):
        with pytest.raises(UserError, match="that the annotations lack"):
            read_answers(write(tmp_path, answers(71, other, "73", 74, "n5")), questions)
    with pytest.raises(UserError, match=r"has 1 question \(71\) more than once"):
        read_answers(write(tmp_path, answers(71, "71", "072", 73, 74, "n5")), questions)


def test_image_ids_are_numbers_or_texts(tmp_path: Path) -> None:
    path = write(tmp_path, [{"image_id": 5, "caption": "a star"}, {"image_id": "b", "caption": "two stars"}])
    assert read_predicted_captions(path, [BY_ID["b"], BY_ID["5"]]) == {BY_ID["b"]: "two stars", BY_ID["5"]: "a star"}


def test_captions_of_several_images_are_told_apart_by_order_and_times(tmp_path: Path) -> None:
    keys: list[Any] = [((1, "b"), ()), (("b", 1), ()), ((1, "b"), (0.0, 2.5)), ((1,), ()), (("1",), (3.0,))]
    records = [official_images(key) for key in keys]
    assert records[2:4] == [{"images": [1, "b"], "times": [0, 2.5]}, {"image_id": 1}]
    path = write(tmp_path, [{**record, "caption": str(place)} for place, record in enumerate(records)])
    found = read_predicted_captions(path, [images_of(record) for record in records])
    assert list(found.values()) == ["0", "1", "2", "3", "4"] and list(found)[2:4] == [
        (("1", "b"), (0.0, 2.5)),
        BY_ID["1"],
    ]
    with pytest.raises(UserError, match=r"has 4 images \(\['1', 'b'\], .*1 at \[3\.0\] s\) that the annotations lack"):
        read_predicted_captions(path, [BY_ID["1"]])
    for wrong, says in (
        ({"images": [[1], 2]}, r"item 0: images \[1\] is not an id"),
        ({"images": 3}, "item 0: images is 3, not a list"),
        ({"image_id": 3, "times": ["a"]}, r"item 0 has times \['a'\]; give a list of numbers"),
    ):
        with pytest.raises(UserError, match=says):
            read_predicted_captions(write(tmp_path, [{**wrong, "caption": "a"}]), [BY_ID["1"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not valid JSON"),
        ({"answers": []}, r"does not contain a JSON list; write it as \[\{\"question_id\": \.\.\., \"answer\""),
        ([], "is an empty list"),
        ([["question_id"]], "item 0 is not a JSON object"),
        ([{"question_id": 7}], "item 0 has no field 'answer'"),
        ([{"answer": "yes"}], "item 0 has no field 'question_id'"),
        ([{"question_id": 7, "answer": 2}], "the answer of question_id 7 is 2, not a text"),
        ([{"question_id": 7, "answer": None}], "the answer of question_id 7 is None, not a text"),
        ([{"question_id": 7.5, "answer": "yes"}], r"item 0: question_id 7\.5 is not an id"),
        ([{"question_id": True, "answer": "yes"}], "item 0: question_id True is not an id"),
        ([{"question_id": [7], "answer": "yes"}], r"item 0: question_id \[7\] is not an id"),
        (answers(7, 3, "09"), r"has 1 question \(09\) that the annotations lack"),
        (answers(7, 3, "a b "), r"has 1 question \('a b '\) that the annotations lack"),
        (answers(7, 3, 9, 3), r"has 1 question \(3\) more than once"),
        (answers(7, 3, 9, 4, 5), r"has 2 questions \(4, 5\) that the annotations lack"),
        (answers(9), r"lacks 2 questions \(7, 3\) of 3; predict every one"),
    ],
)
def test_the_error_for_a_bad_file_is_one_sentence_with_the_item(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_answers(write(tmp_path, content), QUESTIONS)
    assert "predictions.json" in str(caught.value) and "\n" not in str(caught.value)


def test_errors_name_only_the_first_of_many_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 99 images \(1, 2, 3, 4, 5, \.\.\.\) of 100"):
        read_predicted_captions(
            write(tmp_path, [{"image_id": 0, "caption": "a"}]), [((str(i),), ()) for i in range(100)]
        )


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_answers(tmp_path / "none.json", QUESTIONS)
