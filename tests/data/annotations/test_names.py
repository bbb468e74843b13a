"""Fields of JSON lines by the names that other formats give them: what they say must not be lost."""

import json

import pytest

from dimvl.data.annotations.choices import read_choices
from dimvl.data.annotations.items import jsonl_items
from dimvl.data.annotations.jsonl import jsonl_captions, jsonl_questions
from dimvl.errors import UserError


@pytest.mark.parametrize(
    ("read", "line", "other", "name"),
    [
        (read_choices, {"candidates": ["a", "b"], "question": "which?"}, "question", "text"),
        (read_choices, {"candidates": ["a", "b"], "text": "which?", "question_id": 7}, "question_id", "id"),
        (jsonl_items, {"statement": "it is red", "label": "true"}, "statement", "text"),
        (jsonl_questions, {"question": "which?", "id": "q7"}, "id", "question_id"),
        (jsonl_captions, {"caption": "a dog", "caption_id": 3}, "caption_id", "id"),
        (lambda path: jsonl_captions(path, bare=True), {"text": "a dog"}, "text", "caption"),
    ],
)
def test_a_field_by_another_name_is_refused(tmp_path, read, line, other, name):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"image": 1, **line}) + "\n")
    with pytest.raises(UserError, match=f"line 1 has '{other}', which is called '{name}' here; rename it"):
        read(path)
    path.write_text(json.dumps({"image": 1, **{name if key == other else key: line[key] for key in line}}) + "\n")
    assert len(getattr(found := read(path), "items", found)) == 1
