import json

import pytest

from dimvl.data.annotations import read_captions, read_questions
from dimvl.errors import UserError

CAPTION = {"id": 1, "image_id": 7, "caption": " a red star "}
QUESTION = {"question_id": 5, "image_id": 7, "question": "what colour?"}
ANNOTATION = {
    "question_id": 5,
    "image_id": 7,
    "answers": [{"answer": "red"}, {"answer": "blue"}],
    "question_type": "attribute",
    "answer_type": "other",
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def without(record, field):
    return {name: value for name, value in record.items() if name != field}


def test_captions_come_in_the_order_of_the_file_with_image_ids_as_text(tmp_path):
    path = write(tmp_path / "c.json", {"annotations": [CAPTION, {**CAPTION, "id": 0, "image_id": "x", "caption": "b"}]})
    captions = read_captions(path)
    assert [(c.caption_id, c.image_id, c.text) for c in captions] == [(1, "7", "a red star"), (0, "x", "b")]


def test_questions_get_the_answers_of_their_own_annotation(tmp_path):
    other = {**QUESTION, "question_id": 6, "image_id": 8}
    questions = write(tmp_path / "q.json", {"questions": [QUESTION, other]})
    annotations = [{**ANNOTATION, "question_id": 6, "answers": [{"answer": "two"}]}, ANNOTATION]
    read = read_questions(questions, write(tmp_path / "a.json", {"annotations": annotations}))
    assert [(q.question_id, q.image_id, q.answers, q.kind) for q in read] == [
        (5, "7", ("red", "blue"), "attribute"),
        (6, "8", ("two",), "attribute"),
    ]


def test_questions_without_annotations_have_no_answers(tmp_path):
    questions = write(tmp_path / "q.json", {"questions": [QUESTION]})
    assert read_questions(questions, None)[0].answers == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ([CAPTION], "no list 'annotations'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"questions": [QUESTION]}, "no list 'annotations'"),
        ({"annotations": [CAPTION, 3]}, "item 1 .* no mapping"),
        ({"annotations": [CAPTION, "id image_id caption"]}, "item 1 .* no mapping"),
        ({"annotations": [without(CAPTION, "caption")]}, "no field 'caption'"),
        ({"annotations": [without(CAPTION, "image_id")]}, "no field 'image_id'"),
        ({"annotations": [{**CAPTION, "caption": " \n"}]}, "caption 1 of image 7 is empty"),
        ({"annotations": [{**CAPTION, "caption": None}]}, "caption 1 of image 7 is empty"),
        ({"annotations": [{**CAPTION, "id": "first"}]}, "'first' is not a whole number"),
    ],
)
def test_a_bad_caption_file_is_one_sentence_with_its_name(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read_captions(write(tmp_path / "c.json", content))
    assert str(tmp_path / "c.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("questions", "annotations", "says"),
    [
        (
            {"questions": [{**QUESTION, "question": ""}]},
            {"annotations": [ANNOTATION]},
            "question 5 of image 7 is empty",
        ),
        ({"questions": [{**QUESTION, "question_id": None}]}, {"annotations": []}, "None is not a whole number"),
        ({"questions": [QUESTION]}, {"annotations": []}, "no annotation for question 5"),
        ({"questions": [QUESTION]}, {"annotations": [without(ANNOTATION, "answers")]}, "no field 'answers'"),
        ({"questions": [QUESTION]}, {"annotations": [{**ANNOTATION, "answers": ["red"]}]}, "answers of question 5"),
        ({"questions": [QUESTION]}, {"annotations": [{**ANNOTATION, "answers": None}]}, "answers of question 5"),
        ({"questions": [QUESTION]}, {"annotations": [{**ANNOTATION, "answers": [{}]}]}, "answers of question 5"),
        ({"annotations": []}, {"annotations": [ANNOTATION]}, "no list 'questions'"),
    ],
)
def test_bad_question_files_are_one_sentence(tmp_path, questions, annotations, says):
    with pytest.raises(UserError, match=says):
        read_questions(write(tmp_path / "q.json", questions), write(tmp_path / "a.json", annotations))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"c\.json does not exist"):
        read_captions(tmp_path / "c.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path)
