import json

import pytest
import torch
from safetensors.torch import save_file

from dimvl.errors import UserError
from dimvl.files.weights import load_weights, save_weights, weight_shapes


def test_weights_are_read_as_they_were_saved_with_the_mode_of_the_umask(tmp_path):
    weights = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.zeros(0)}
    save_weights(tmp_path / "w.safetensors", weights)
    assert weight_shapes(tmp_path / "w.safetensors", "mend it") == {"a": (0,), "b": (3, 2)}
    found = load_weights(tmp_path / "w.safetensors", "mend it")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    (tmp_path / "other").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def header(values, more=b""):
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + more


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a whole safetensors file"),
        (b"\xff" * 8, "its header would have 18,446,744,073,709,551,615 bytes"),
        ((2**24 + 1).to_bytes(8, "little") + b" " * 9, "its header would have 16,777,217 bytes"),
        (header([]), "not a whole safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), "not a whole safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), "not a whole"),
        (header({"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "a has the type I32"),
    ],
)
def test_a_header_that_lies_is_one_sentence(tmp_path, content, says):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.safetensors.*{says}.*; mend it"):
        weight_shapes(tmp_path / "w.safetensors", "mend it")


def test_an_error_about_a_header_is_short_however_long_what_is_in_it(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(header({"a": {"dtype": "F32" * 100_000}}))
    for read in (weight_shapes, load_weights):
        with pytest.raises(UserError, match="not a whole safetensors file") as caught:
            read(tmp_path / "w.safetensors", "mend it")
        assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_pipe_is_not_opened_for_weights(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for read in (weight_shapes, load_weights):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(tmp_path / "pipe", "mend it")
    save_file({}, tmp_path / "empty")
    assert load_weights(tmp_path / "empty", "mend it") == {}
