"""The examples of docs/annotations.md are read as the page says."""

import json
import re
from pathlib import Path

import pytest

from dimvl.data.annotations import (
    read_captions,
    read_choices,
    read_items,
    read_phrases,
    read_probes,
    read_questions,
)
from tests.data.annotations.files import write

PAGE = Path(__file__).parents[3] / "docs" / "annotations.md"
SECTIONS = {
    heading: re.findall(r"^```(json|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for heading, text in re.findall(
        r"^### (.*?)$(.*?)(?=^##)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
}


@pytest.mark.parametrize(
    ("heading", "name", "split"),
    [
        ("COCO captions", "a.json", ()),
        ("Karpathy's splits", "a.json", ("restval",)),
        ("Flickr30k and Flickr8k", "a.txt", ()),
        ("Caption and image, as in Conceptual Captions", "a.tsv", ()),
        ("Your own JSON lines", "a.jsonl", ()),
        ("Videos", "a.jsonl", ()),
        ("Visual storytelling (VIST)", "a.json", ()),
        ("MSR-VTT", "a.json", ("train",)),
        ("ActivityNet Captions", "a.json", ()),
    ],
)
def test_examples_of_captions_are_read(tmp_path, heading, name, split):
    assert SECTIONS[heading]
    for _, content in SECTIONS[heading]:
        table = content.startswith("key,")
        path = write(tmp_path / ("a.csv" if table else name), content)
        assert len(read_captions(path, () if table else split)) in (1, 2, 3)


def test_examples_of_questions_are_read(tmp_path):
    (_, asked), (_, answered) = SECTIONS["VQA v2"]
    questions = write(tmp_path / "q.json", asked)
    assert len(read_questions(questions)) == 2
    first = {**json.loads(asked), "questions": json.loads(asked)["questions"][:1]}
    one = write(tmp_path / "one.json", first)
    assert read_questions(one, write(tmp_path / "a.json", answered))[0].answers == ("rice", "rice", "food")
    ((_, lines),) = SECTIONS["Questions as JSON lines"]
    assert [len(question.answers) for question in read_questions(write(tmp_path / "q.jsonl", lines))] == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("heading", "name", "answers"),
    [
        ("Candidates as JSON lines", "a.jsonl", [1, 0]),
        ("A-OKVQA with candidates", "a.json", [3]),
        ("VCR", "a.jsonl", [0, 0]),
    ],
)
def test_examples_of_questions_with_candidates_are_read(tmp_path, heading, name, answers):
    ((_, content),) = SECTIONS[heading]
    assert [item.answer for item in read_choices(write(tmp_path / name, content)).items] == answers


def test_examples_of_phrases_are_read(tmp_path):
    (_, refs), (_, instances), (_, captioned) = SECTIONS["RefCOCO"]
    [lady] = read_phrases(write(tmp_path / "refs.json", refs), write(tmp_path / "instances.json", instances))
    [same] = read_phrases(write(tmp_path / "captioned.json", captioned))
    assert (lady.text, lady.boxes, lady.images) == (same.text, same.boxes, same.images)
    ((_, lines),) = SECTIONS["Phrases as JSON lines"]
    assert [len(one.boxes) for one in read_phrases(write(tmp_path / "a.jsonl", lines))] == [1, 2, 0]


def test_the_example_of_a_okvqa_is_read(tmp_path):
    ((_, content),) = SECTIONS["OK-VQA and A-OKVQA"]
    assert len(read_questions(write(tmp_path / "a.json", content))[0].answers) == 3


@pytest.mark.parametrize(
    ("heading", "name", "format"),
    [
        ("Items as JSON lines", "a.jsonl", "JSON lines"),
        ("NLVR2", "a.json", "NLVR2"),
        ("NLVR", "a.json", "NLVR"),
        ("SNLI-VE", "a.jsonl", "SNLI-VE"),
        ("GQA", "a.json", "GQA"),
    ],
)
def test_examples_of_items_to_classify_are_read(tmp_path, heading, name, format):
    ((_, content),) = SECTIONS[heading]
    found = read_items(write(tmp_path / name, content))
    assert found.format == format and all(item.labels for item in found.items) and len(found.items) in (1, 3)


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("VALSE", "a.json"),
        ("SugarCrepe", "a.json"),
        ("FOIL", "a.json"),
        ("Winoground", "a.jsonl"),
        ("Your own probes", "a.jsonl"),
    ],
)
def test_examples_of_probes_are_read(tmp_path, heading, name):
    ((_, content),) = SECTIONS[heading]
    assert len(read_probes(write(tmp_path / name, content)).items) in (1, 2)
