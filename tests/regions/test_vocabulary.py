"""Vocabulary files: one name per line, read in one place."""

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.vocabulary import Vocabulary, is_background


def test_a_name_for_no_class_is_recognised_in_any_spelling():
    usual = ["background", "__background__", "_Background_", "BG", "<bg>", "unknown", "UNK", "[UNK]", "none", "N/A"]
    usual += ["n.a.", "no object", "no-object", "No_Object", "void", "null", "", " ", "-", "<pad>", "__ignore__"]
    assert [name for name in usual if not is_background(name)] == []


def test_other_names_are_classes():
    classes = ["person", "0", "bag", "no", "nun", "background building", "nasa", "unknown animal", "背景板", "other"]
    assert [name for name in classes if is_background(name)] == []


def vocabulary(folder, content):
    (folder / "names.txt").write_text(content, encoding="utf-8", newline="")
    return Vocabulary.read(folder / "names.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\n\ndog\n", "has no name in line 2; write the name"),
        ("\ncat\n \n,dog\nbird", "has no name in line 1, 3, 4; write"),
        ("\n\n", "has 0 names; give 1 to 32,767"),
        ("cat\n" * 40_000, "has 40,000 names"),
        (
            "cat\ndog\nbird\ndog\n cat ,x\n",
            "has names twice: 'cat' in lines 1 and 5, 'dog' in lines 2 and 4; make",
        ),
        ("__background__\n", "has the name of the background only; add the others"),
    ],
)
def test_a_vocabulary_that_is_not_one_name_per_line_is_refused_with_the_numbers_of_the_lines(
    content, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        vocabulary(tmp_path, content)


def test_a_vocabulary_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "classes.txt", tmp_path / "missing.txt", tmp_path):
        with pytest.raises(
            UserError, match=rf"^vocabulary {path} is not UTF-8|{path} does not exist|{path} is a folder"
        ):
            Vocabulary.read(path)


def test_line_ends_of_another_system_and_empty_lines_at_the_end_do_not_change_a_vocabulary(tmp_path):
    for content in ("\ufeffcat\r\ndog , hound\r\n", "cat\rdog\r", "cat\ndog", "cat\ndog\n\n \n"):
        assert vocabulary(tmp_path, content).names == ("cat", "dog")
    assert vocabulary(tmp_path, "ice\u2028cream\ncat").names == ("ice\u2028cream", "cat")  # no line end of a text file


def test_a_background_in_first_place_is_dropped_and_said_and_ids_of_lines_follow(tmp_path, caplog):
    found = vocabulary(tmp_path, "__background__\ncat\nbackground\n")
    assert (found.names, found.background) == (("cat", "background"), "__background__")
    assert "begins with '__background__', which is no class: it gets no id, and class 0 is 'cat'" in caplog.text
    assert found.of_lines(np.array([0, 1, 2, -1])).tolist() == [-1, 0, 1, -1]
    caplog.clear()
    found = vocabulary(tmp_path, "cat\nbackground\n")
    assert found.of_lines(np.array([0, 1, -1])).tolist() == [0, 1, -1] and not caplog.text


def test_a_name_is_found_before_a_synonym_of_another(tmp_path):
    assert vocabulary(tmp_path, "cat,kitten\nkitten\ndog,hound,pet\nfox,pet").ids == {
        "cat": 0,
        "kitten": 1,
        "dog": 2,
        "hound": 2,
        "pet": 2,
        "fox": 3,
    }
