import os
from pathlib import Path

import pytest
from pydantic import Field

from dimvl.errors import UserError
from dimvl.files import Strict, inside, open_regular, read_bytes, read_json, read_json_as, read_text, sha256
from dimvl.showing import short, visible


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "large").write_bytes(b"12345")
    for path, sentence in {
        tmp_path / "pipe": "pipe is a pipe or a device; give a file on disk",
        "/dev/zero": "zero is a pipe or a device",
        tmp_path: "is a folder; give a file",
        tmp_path / "dangling": "is a link to something that does not exist",
        tmp_path / "missing": "missing does not exist; check the path",
        tmp_path / "large" / "below": "below does not exist",
        tmp_path / "large": "has 5 bytes but such a file has at most 4",
    }.items():
        with pytest.raises(UserError, match=sentence):
            open_regular(path if path == "/dev/zero" else tmp_path / path, limit=4)
    assert read_bytes(tmp_path / "large", limit=5) == b"12345"
    with pytest.raises(UserError, match="is a pipe"):
        sha256(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
    ],
)
def test_broken_json_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_json(tmp_path / "file")
    assert len(str(caught.value)) < 400


def test_text_may_have_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfwords")
    assert read_text(tmp_path / "file") == "words"
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_text(tmp_path / "file")


class Form(Strict):
    layers: int = Field(gt=0, le=100)
    names: tuple[str, ...] = ()
    share: float = 0.5


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{}", "layers: field required"),
        ('{"layers": 0}', "layers is 0: "),
        ('{"layers": true}', "layers is True: "),
        ('{"layers": "3"}', "layers is '3': "),
        ('{"layers": 2.5}', "layers is 2.5: "),
        ('{"layers": 1, "widht": 3}', "widht is 3: "),
        ('{"layers": 1, "names": "ab"}', "names is 'ab': "),
        ('{"layers": 1, "names": [1]}', "names.0 is 1: "),
        ('{"layers": 1, "share": NaN}', "share"),
        ("[1]", r"the whole file is \[1\]: "),
    ],
)
def test_a_file_of_another_form_names_the_value_and_the_remedy(tmp_path, content, place):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UserError, match=rf"file.json is damaged or of another version \({place}.*\); copy it again"):
        read_json_as(tmp_path / "file.json", Form, "copy it again")


def test_a_file_of_the_form_is_read_with_lists_as_tuples(tmp_path):
    (tmp_path / "file.json").write_text('{"layers": 3, "names": ["a", "b"], "share": 1}')
    assert read_json_as(tmp_path / "file.json", Form, "") == Form(layers=3, names=("a", "b"), share=1.0)


def test_a_message_is_never_longer_than_a_screen():
    message = str(UserError(f"{'a' * 10**6} is wrong; give another"))
    assert len(message) < 2100 and message.startswith("aaa") and message.endswith("is wrong; give another")


def test_what_a_terminal_obeys_is_shown_as_escapes():
    assert visible("a\x1b[2Jb\nc\r\u202ed\udce9") == r"a\x1b[2Jb\nc\r\u202ed\udce9"
    assert visible("naïve 猫 — é") == "naïve 猫 — é"
    assert len(short({str(n): list(range(1000)) for n in range(1000)})) < 300
    assert len(short("x" * 10**6)) < 200


def test_a_name_from_a_file_stays_inside_the_folder_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to("/")
    for folder in (tmp_path, tmp_path / "data" / "..", Path()):
        assert inside(folder, "a/../b.png") == folder / "b.png"
        assert inside(folder, f"{tmp_path}/b.png") == folder / "b.png"
        assert inside(folder, "linked/etc") == folder / "linked" / "etc"  # the owner's own link
        assert inside(folder, "linked/../b.png") == folder / "b.png"
        for name in ("../b.png", "a/../../b.png", "/etc/passwd", f"{tmp_path}2/b.png", "linked/../../b.png"):
            with pytest.raises(UserError, match=f"^{name} is outside the folder"):
                inside(folder, name)
    assert inside(Path("/"), "/etc/passwd") == Path("/etc/passwd")
