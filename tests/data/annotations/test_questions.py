import json

import pytest

from dimvl.data.annotations import describe_file, read_questions
from dimvl.errors import UserError
from tests.data.annotations.files import ANNOTATIONS, CAPTION_FILES, QUESTION_LINES, QUESTIONS, write

QUESTION = {"question_id": 5, "image_id": 7, "question": "what colour?"}
ANNOTATION = {"question_id": 5, "image_id": 7, "answers": [{"answer": "red"}, {"answer": "blue"}]}


def without(record, field):
    return {name: value for name, value in record.items() if name != field}


def test_questions_get_the_answers_of_their_own_annotation_and_the_file_name_of_coco(tmp_path):
    questions = write(tmp_path / "q.json", QUESTIONS)
    read = read_questions(questions, write(tmp_path / "a.json", ANNOTATIONS))
    assert [(q.question_id, q.image_id, q.text, q.answers, q.kind, q.answer_type, *q.file_names) for q in read] == [
        (5, "12", "what colour?", ("red", "red", "dark red"), "what", "other", "COCO_train2014_000000000012.jpg"),
        (6, "9", "how many?", ("2",), "how many", "number", "COCO_train2014_000000000009.jpg"),
    ]


@pytest.mark.parametrize(
    ("subtype", "names"),
    [
        ("test2015", ("COCO_test2015_000000000012.jpg",)),
        ("test-dev2015", ("COCO_test2015_000000000012.jpg",)),
        ("abstract", ()),
        (None, ()),
    ],
)
def test_file_names_follow_from_the_subtype_of_coco_only(tmp_path, subtype, names):
    path = write(tmp_path / "q.json", {**QUESTIONS, "data_subtype": subtype})
    assert read_questions(path)[0].file_names == names
    assert read_questions(write(path, {**QUESTIONS, "data_type": "scenes"}))[0].file_names == ()


def test_questions_without_annotations_have_no_answers(tmp_path):
    assert read_questions(write(tmp_path / "q.json", {"questions": [QUESTION]}))[0].answers == ()


@pytest.mark.parametrize("people", [0, 1, 10, 11])
def test_any_number_of_people_may_have_answered(tmp_path, people):
    questions = write(tmp_path / "q.json", {"questions": [QUESTION]})
    annotation = {**ANNOTATION, "answers": [{"answer": "red"}] * people}
    annotations = write(tmp_path / "a.json", {"annotations": [annotation]})
    assert read_questions(questions, annotations)[0].answers == ("red",) * people


def test_ids_of_questions_are_matched_by_their_text_and_stay_what_they_are(tmp_path):
    ids = [7, "07", "8", "n 9", 10.0]
    questions = [{**QUESTION, "question_id": own} for own in ids]
    annotations = [{**ANNOTATION, "question_id": own} for own in (10, "n 9", 8, "07", "7")]
    annotations = [{**each, "image_id": "7", "answers": [{"answer": str(each["question_id"])}]} for each in annotations]
    asked = write(tmp_path / "q.json", {"questions": questions})
    found = read_questions(asked, write(tmp_path / "a.json", {"annotations": annotations}))
    assert [q.question_id for q in found] == [7, "07", "8", "n 9", 10]
    assert [q.answers for q in found] == [(str(q.question_id),) for q in found]


def test_lines_without_an_id_get_numbers_that_no_line_has(tmp_path):
    ids = [None, 2, None, "4", None]
    lines = [{"image": 1, "question": "a"} | ({} if own is None else {"question_id": own}) for own in ids]
    found = read_questions(write(tmp_path / "q.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert [(q.question_id, q.numbered) for q in found] == [(0, True), (2, False), (5, True), ("4", False), (6, True)]


def test_lines_of_json_have_their_own_answers_one_or_several(tmp_path):
    path = write(tmp_path / "q.jsonl", QUESTION_LINES + '{"image": "a b.jpg", "question": "why?"}\n')
    read = read_questions(path)
    assert [(q.question_id, q.image_id, q.answers) for q in read] == [
        (0, "12", ("red", "red", "dark red")),
        (6, "9", ("2",)),
        (2, "a b.jpg", ()),
    ]
    assert read[0].answer_type == "other" and read[0].kind == ""
    with pytest.raises(UserError, match="contains its own answers; remove the annotations"):
        read_questions(path, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("questions", "annotations", "says"),
    [
        ([{**QUESTION, "question": ""}], [ANNOTATION], "question 5 of image 7 is empty"),
        ([{**QUESTION, "question": 3}], [ANNOTATION], "question 5 of image 7 is 3, not text"),
        ([{**QUESTION, "question_id": None}], [], "None is not an id"),
        ([{**QUESTION, "question_id": 2.0**60}], [], "question_id 1.15.*e.18 is not an id"),
        ([QUESTION, {**QUESTION, "question_id": "5"}], [ANNOTATION], "question_id '5' appears twice"),
        ([QUESTION], [], "no annotation for question 5"),
        ([QUESTION], [ANNOTATION, ANNOTATION], "question_id 5 appears twice"),
        ([QUESTION], [{**ANNOTATION, "image_id": 8}], "question 5 is about image 8 in .* but about image 7 in"),
        ([QUESTION], [without(ANNOTATION, "answers")], "no field 'answers'"),
        ([QUESTION], [{**ANNOTATION, "answers": ["red"]}], "an answer of question 5 is not a JSON object"),
        ([QUESTION], [{**ANNOTATION, "answers": None}], "answers of question 5 is None, not a list"),
        ([QUESTION], [{**ANNOTATION, "answers": [{}]}], "an answer of question 5 has no field .answer."),
        ([QUESTION], [{**ANNOTATION, "answers": [{"answer": None}]}], "an answer of question 5 is None, not text"),
        ([QUESTION], [{**ANNOTATION, "answer_type": []}], "answer_type is .*, not text"),
        (None, [ANNOTATION], "no list 'questions'"),
    ],
)
def test_bad_question_files_are_one_sentence(tmp_path, questions, annotations, says):
    asked = write(tmp_path / "q.json", {} if questions is None else {"questions": questions})
    with pytest.raises(UserError, match=says) as caught:
        read_questions(asked, write(tmp_path / "a.json", {"annotations": annotations}))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": 1, "question": ""}', "question 2 of image 1 is empty"),
        ('{"image": 1, "question": "\\u200b"}', "question 2 of image 1 is empty"),
        ('{"image": 1, "question": "a", "answer": "' + "b" * 100_001 + '"}', "has 100,001 characters"),
        ('{"image": 1, "question": "a", "answers": "red"}', "answers of question 2 is 'red', not a list"),
        ('{"image": 1, "question": "a", "answers": [["red"]]}', "an answer of question 2 is .*, not text"),
        ('{"image": 1, "question": "a", "answers": [NaN]}', "an answer of question 2 is nan, not text"),
        ('{"image": 1, "question": "a", "answer": "b", "answers": []}', "both answer and answers"),
        ('{"image": 1, "question": "a", "question_id": "6"}', "question_id '6' appears twice"),
        ('{"image": 1, "question": "a", "question_id": true}', "question_id True is not an id"),
        ('{"image": 1, "question": "a", "question_id": null}', "question_id None is not an id"),
        ('{"image": 1}', "no field 'question'"),
    ],
)
def test_bad_lines_of_json_are_one_sentence_with_the_line(tmp_path, line, says):
    with pytest.raises(UserError, match=says) as caught:
        read_questions(write(tmp_path / "q.jsonl", QUESTION_LINES + line + "\n"))
    assert str(caught.value).startswith(f"{tmp_path / 'q.jsonl'}, line 3")


def test_a_file_is_described_whatever_its_format(tmp_path):
    assert describe_file(write(tmp_path / "a.json", CAPTION_FILES["coco.json"]))["description"] == "hand-written"
    described = describe_file(write(tmp_path / "a.tsv", CAPTION_FILES["conceptual.tsv"]))
    assert described["file"] == "a.tsv" and described["description"] == "" and len(described["sha256"]) == 64
    with pytest.raises(UserError, match="does not exist"):
        describe_file(tmp_path / "b.tsv")
