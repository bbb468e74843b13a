import json

import pytest

from dimvl.errors import UserError
from dimvl.files import (
    CHECKSUMS,
    check_folder,
    read_lines,
    read_sealed,
    seal_folder,
    sealed_line,
    write_json,
    write_sealed,
)


def test_every_flipped_bit_of_a_sealed_file_is_noticed(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, {"name": "katze 猫", "checksum of": [1, 2]})
    assert read_sealed(path, "") == {"name": "katze 猫", "checksum of": [1, 2]}
    assert list(json.loads(path.read_text()))[-1] == "checksum"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"sealed.json is damaged: .*; copy it again"):
            read_sealed(path, "copy it again")


def test_a_folder_is_compared_with_its_checksums(tmp_path):
    (tmp_path / "detector").mkdir()
    for name in ("a.bin", "detector/b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    seal_folder(tmp_path, ["a.bin", "detector/b.bin"])
    check_folder(tmp_path, "")
    (tmp_path / "detector/b.bin").write_bytes(b"Detector/b.bin")
    check_folder(tmp_path, "", ["a.bin"])
    with pytest.raises(UserError, match=r"b.bin is damaged: it does not match its checksum; copy it again"):
        check_folder(tmp_path, "copy it again")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(UserError, match=r"lacks a.bin; copy it again"):
        check_folder(tmp_path, "copy it again")
    with pytest.raises(UserError, match=r"c.bin has no checksum"):
        check_folder(tmp_path, "", ["c.bin"])


@pytest.mark.parametrize("name", ["/etc/hosts", "../outside", "a/../../outside", ""])
def test_checksums_name_no_file_outside_their_folder(tmp_path, name):
    write_sealed(tmp_path / CHECKSUMS, {"files": {name: {"num_bytes": 1, "sha256": "0" * 64}}})
    with pytest.raises(UserError, match=r"which is not a file in its folder"):
        check_folder(tmp_path, "")


def test_checksums_of_another_form_are_one_sentence(tmp_path):
    write_json(tmp_path / CHECKSUMS, {"files": {}})
    with pytest.raises(UserError, match=r"does not match the checksum at its end"):
        check_folder(tmp_path, "")
    write_sealed(tmp_path / CHECKSUMS, {"files": {"a": 1}})
    with pytest.raises(UserError, match=r"files.a is 1"):
        check_folder(tmp_path, "")


def test_every_flipped_bit_of_a_file_of_lines_costs_at_most_two_lines_and_is_noticed(tmp_path):
    path, values = tmp_path / "log.jsonl", [{"step": n, "loss": 1 / n, "losses": {"words": 2.5}} for n in (1, 2, 3)]
    data = "".join(map(sealed_line, values)).encode()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found, damaged = read_lines(path, "step")
        assert all(line in values for line in found) and (len(found) == 3 or (found and damaged)), bit


def test_lines_of_older_versions_are_read_and_one_that_is_cut_off_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": null}\n[1]\n' + sealed_line({"step": 2})[:-9])
    assert read_lines(path, "step") == ([{"step": 1, "loss": 2.0}], [b'{"step": null}', b"[1]"])


def test_an_unfinished_last_line_is_damaged_unless_it_is_the_beginning_of_one(tmp_path):
    path, line = tmp_path / "log.jsonl", sealed_line({"step": 2, "losses": {"words": 2.5}})
    for end in range(len(line)):
        path.write_text(line + line[:end])
        found, damaged = read_lines(path, "step")
        assert (len(found), damaged) == (2 if end == len(line) - 1 else 1, [])
    for end in (line[:-3] + "x" * 9, line[:-3] + "\x1b", line[:5] + "é", line[:-6] + "g"):
        path.write_bytes((line + end).encode())
        assert read_lines(path, "step")[1] == [end.encode()]
