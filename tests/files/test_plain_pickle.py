"""Pickles of plain data are read, and nothing in a pickle is ever run."""

import json
import os
import pickle
import resource
import struct

import pytest

from dimvl.errors import UserError
from dimvl.files.plain_pickle import parse_plain_pickle, read_plain_pickle

DATA = [
    {"ref_id": 3, "sent_ids": [0, 1, 2**40, -7, 2**80], "split": "val", "é": "ünïcode \u4e2d", "box": (1.5, 2, 0.0)},
    {"flags": [True, False, None], "empty": [[], {}, ()], "pair": (1, 2), "one": (1,), "long": "x" * 300},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_from_every_protocol(protocol, tmp_path):
    (tmp_path / "refs.p").write_bytes(pickle.dumps([*DATA, DATA[0]], protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == json.loads(json.dumps([*DATA, DATA[0]]))


def test_text_of_python_2_is_read_in_both_of_its_forms():
    text = b"(lp0\n(dp1\nS'sent'\np2\nS'a \"caf\\xc3\\xa9\" it\\'s'\np3\nsS'ok'\nI01\nsS'raw'\ng3\nsS'n'\nL5L\nsa."
    assert parse_plain_pickle(text, "refs.p") == [
        {"sent": 'a "café" it\'s', "ok": True, "raw": 'a "café" it\'s', "n": 5}
    ]
    assert parse_plain_pickle(b"\x80\x02]q\x00(U\x04caf\xe9T\x02\x00\x00\x00abe.", "refs.p") == ["café", "ab"]


class Runs:
    def __init__(self, call, arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


def hostile(tmp_path):
    mark = tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps([{"ref_id": Runs(os.mkdir, (str(mark),))}], protocol)
        yield pickle.dumps([{"ref_id": Runs(exec, (f"import os; os.mkdir({str(mark)!r})",))}], protocol)
    yield f"(ios\nmkdir\nS'{mark}'\nR.".encode()  # INST
    yield f"(S'{mark}'\nios\nmkdir\n.".encode()
    yield b"\x80\x02\x82\x01."  # EXT1
    yield b"P1\n."  # PERSID
    yield b"\x80\x02cbuiltins\nset\n]\x85\x81."  # NEWOBJ
    yield b"\x80\x04\x8f."  # EMPTY_SET
    yield pickle.dumps(bytearray(b"x"), 5)
    yield pickle.dumps(object(), 2)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    for data in hostile(tmp_path):
        with pytest.raises(UserError, match="which is not plain data and may run a program; get the file from"):
            parse_plain_pickle(data, "refs.p")
    assert not (tmp_path / "ran").exists()


HUGE = [
    b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",  # a text
    b"\x80\x04X\xff\xff\xff\xffx.",
    b"T\xff\xff\xff\x7fx.",
    b"\x80\x02\x8b\xff\xff\xff\x7fx.",  # a number
    b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"]",  # a frame
    b"I" + b"9" * 10**6 + b"\n.",
    b"L" + b"9" * 10**6 + b"L\n.",
    b"S" + b"(" * 10**5 + b"\n.",
]
DAMAGED = [
    b"",
    b"hello",
    b"\x80\x04]",
    b"(" * 1000,
    b"]a.",
    b"h\x05.",
    b"]]sd.",
    b"S'x\n.",
    b"}]]s.",
    b"(NN.",
    b"\x80\x02(K\x01d.",
]


@pytest.mark.parametrize("data", HUGE + DAMAGED)
def test_a_pickle_that_announces_more_than_it_has_or_is_damaged_is_one_sentence(data):
    with pytest.raises(
        UserError, match=r"refs\.p is not a whole pickle of plain data; check that it is the right file"
    ):
        parse_plain_pickle(data, "refs.p")


def test_nothing_is_reserved_for_what_a_pickle_only_announces():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in HUGE:
        with pytest.raises(UserError):
            parse_plain_pickle(data, "refs.p")
    memory = b"\x80\x04]r\xff\xff\xff\xff."  # a place in the memory: Python's own reader reserves 64 GB
    assert parse_plain_pickle(memory, "refs.p") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_lists_that_hold_themselves_or_are_nested_a_million_times_do_not_end_the_process():
    itself = parse_plain_pickle(b"]q\x00h\x00a.", "refs.p")
    assert itself[0] is itself
    deep = parse_plain_pickle(b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "refs.p")
    assert len(deep) == 1
