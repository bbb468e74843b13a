"""Readers on files that were damaged at random: an error sentence or a correct read, never anything else."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dimvl.data.annotations import Question, read_captions, read_questions
from dimvl.errors import UserError
from tests.data.annotations.files import (
    ANNOTATIONS,
    CAPTION_FILES,
    COCO,
    KARPATHY,
    QUESTION_LINES,
    QUESTIONS,
    SEVERAL_LINES,
    SPLITS,
    write,
)
from tests.data.annotations.stories import ACTIVITYNET, MSRVTT, ONE_K, VIST

# The same files in every run, and no folder of examples is written.
FUZZING = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
FRAGMENTS = (
    *(b'"', b"\n", b"\r", b"\t", b"|", b",", b"#", b"{", b"}", b"[", b"]", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc3"),
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 30, b"9" * 5000, b"null", b"true", b"[" * 2000, b"\\ud800", b"  "),
)
VALUES = (
    *(None, True, False, 0, -1, 2**63, 2**200, 1.5, 3.0, float("nan"), float("inf"), 1e300, "", " ", "12", "\x00"),
    *("\ud800", "x" * 5000, [], {}, [[]], [None], {"answer": None}, [{"answer": 3}], {"id": 1}, "train", "\u2028", "𝄞"),
)
TREES = {"coco.json": COCO, "karpathy.json": KARPATHY, "questions.json": QUESTIONS, "annotations.json": ANNOTATIONS}
STORIES = {"vist.json": VIST, "msrvtt.json": MSRVTT, "activitynet.json": ACTIVITYNET}
TREES |= STORIES
FILES = CAPTION_FILES | {
    "questions.json": json.dumps(QUESTIONS),
    "annotations.json": json.dumps(ANNOTATIONS),
    "questions.jsonl": QUESTION_LINES,
    "several.jsonl": SEVERAL_LINES,
    "1k-a.csv": ONE_K,
    **{name: json.dumps(tree) for name, tree in STORIES.items()},
}
SPLITS = SPLITS | {"msrvtt.json": ("train", "validate")}


@st.composite
def damaged_bytes(draw, content):
    """A few pieces taken out, doubled, or put in."""
    content = content.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.just(b""), st.just(content[start:end] * 2), st.sampled_from(FRAGMENTS)))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def damaged_tree(draw, tree):
    """Some values of a JSON file replaced, removed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        node, depth = tree, draw(st.integers(0, 5))
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if depth == 0 or not isinstance(node[key], dict | list) or not node[key]:
                change = draw(st.sampled_from(["replace", "remove", "double"]))
                if change == "replace":
                    node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
                elif change == "remove":
                    del node[key]
                elif isinstance(node, list):
                    node.append(copy.deepcopy(node[key]))
                break
            node, depth = node[key], depth - 1
    return json.dumps(tree).encode()


@st.composite
def damaged_files(draw):
    name = draw(st.sampled_from(sorted(FILES)))
    if name in TREES and draw(st.booleans()):
        return name, draw(damaged_tree(TREES[name]))
    return name, draw(damaged_bytes(FILES[name]))


def read(folder, name):
    path = folder / name
    if name in ("questions.jsonl", "several.jsonl"):
        return read_questions(path)
    if name in ("questions.json", "annotations.json"):
        return read_questions(folder / "questions.json", folder / "annotations.json")
    return read_captions(path, SPLITS.get(name, ()))


def check(folder, damaged):
    name, content = damaged
    for other in ("questions.json", "annotations.json"):
        write(folder / other, FILES[other])
    write(folder / name, content)
    try:
        records = read(folder, name)
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        str(error).encode()  # it can be printed
        return
    ids = [record.question_id if isinstance(record, Question) else record.caption_id for record in records]
    assert len(set(map(str, ids))) == len(ids) and all(type(own) in (int, str) for own in ids)
    for record in records:
        assert record.text == record.text.strip() != "" and record.text.encode()
        assert record.image_ids and len(set(record.image_ids)) == len(record.image_ids)
        assert tuple(map(str, record.written_ids)) == record.image_ids
        for image_id in record.image_ids:
            assert image_id.strip() and not {*"\n\t\x00"} & {*image_id} and image_id.encode()
        assert len(record.times) in (0, len(record.image_ids)) and all(0 <= time < 1e39 for time in record.times)
        assert all(isinstance(answer, str) for answer in getattr(record, "answers", ()))


@settings(FUZZING, max_examples=500)
@given(damaged=damaged_files())
def test_a_damaged_file_is_one_sentence_or_a_correct_read(tmp_path_factory, damaged):
    check(tmp_path_factory.getbasetemp(), damaged)


@pytest.mark.slow
@settings(FUZZING, max_examples=20_000)
@given(damaged=damaged_files())
def test_twenty_thousand_damaged_files_are_one_sentence_or_a_correct_read(tmp_path_factory, damaged):
    check(tmp_path_factory.getbasetemp(), damaged)
