"""Programs equal the model they are of, on any layout, and run where nothing of dimvl is installed."""

import json
import random
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from dimvl import program
from dimvl.adapters.adding import add_adapter
from dimvl.config import AdapterConfig
from dimvl.data.prefixes import make_prefix
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files.checksums import check_folder
from dimvl.predictor import Predictor
from dimvl.program import (
    Program,
    arrays_of,
    difference,
    forwards_of,
    image_arrays,
    random_pair,
    trace,
    write_programs,
)
from dimvl.trained_model import load_model
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_regions

EXAMPLES = Path(__file__).parents[1] / "examples"
EVERYTHING = {"answers": ("yes", "no", "red"), "labels": ("a", "b"), "captions": True, "matches": True, "chooses": True}
EVERYTHING |= {"aligns": True, "grounds": True}
PLAIN = {"concepts": "text"}
OTHER = {"concepts": "both", "shared_prefix": True, "times": True, "variant": "masked"}
NO_REGIONS = {"concepts": "none", "concept_tokens": 0, "max_regions": 0}


def trained_of(changes, adapter=None):
    trained = make_trained(all_abilities(**EVERYTHING, **changes))
    for weight in trained.model.parameters():
        if weight.ndim == 1:  # biases and norms, which begin at 0 and 1
            torch.nn.init.normal_(weight.data, generator=torch.Generator().manual_seed(2))
    if adapter is not None:
        add_adapter(trained.model, AdapterConfig(**adapter))
        for name, weight in trained.model.named_parameters():
            if "prefix" in name or "prompt" in name:
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return trained


def apart(trained, what, run, layouts=program.LAYOUTS):
    """The largest difference between a program and the model."""
    found = []
    for seed in range(layouts):
        prefix, words = random_pair(trained, what, np.random.default_rng(100 + seed))
        arrays = arrays_of(trained.processor, prefix, words)
        with torch.no_grad():
            outputs = run(**{name: torch.from_numpy(array) for name, array in arrays.items()})
            found.append(difference(what.eager(trained, prefix, words), outputs))
    return max(found)


@pytest.mark.parametrize(
    ("changes", "adapter"),
    [
        pytest.param(PLAIN, None, id="plain"),
        pytest.param(OTHER, None, id="other"),
        pytest.param(NO_REGIONS, None, id="no-regions"),
        pytest.param({**OTHER, "variant": "causal"}, {"prefix": {"length": 3}}, id="prefix"),
        pytest.param({**PLAIN, "prompt": 2}, {"prompt": 2}, id="prompt"),
    ],
)
def test_a_program_computes_what_the_model_does_by_batches_plans_and_caches(changes, adapter):
    trained = trained_of(changes, adapter)
    found = {what.name: verbs for what, verbs in forwards_of(trained.processor).items()}
    assert found.keys() == {"answer", "caption", "classify", "match", "embed_image", "embed_text", "ground"}
    assert found["match"] == ["choose", "match"]
    for what in forwards_of(trained.processor):
        assert not what.meanings.keys() & program.INPUTS.keys()  # ONNX has one space of names
        assert apart(trained, what, Program(trained, what).eval(), 10) < 1e-5, what.name  # 1e-6 was seen


@pytest.mark.parametrize(
    ("name", "changes"), [pytest.param("embed_image", PLAIN, id="plain"), pytest.param("ground", OTHER, id="other")]
)
def test_an_exported_program_takes_any_number_of_regions_tags_and_words(name, changes):
    trained = trained_of(changes)
    (what,) = (one for one in forwards_of(trained.processor) if one.name == name)
    assert apart(trained, what, trace(trained, what).module()) < 1e-5


def source_of(folder, **can):
    return write_run(
        folder / "run", make_trained(all_abilities(**{"answers": (), "captions": False, **can}, matches=False))
    )


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A run that answers, and its program as an ONNX file."""
    folder = tmp_path_factory.mktemp("answering")
    source = source_of(folder, answers=EVERYTHING["answers"])
    command = [sys.executable, "-m", "dimvl", "export", str(source), str(folder / "programs"), "--onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"/programs/answer\.onnx: differs from the model by at most \de-0\d\n$", done.stdout)
    assert done.stderr.splitlines()[-1].startswith("1 of 1 programs") and "arning" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def captioning(tmp_path_factory):
    """A run that captions, and its program for torch."""
    folder = tmp_path_factory.mktemp("captioning")
    found = write_programs(source_of(folder, captions=True), folder / "programs")
    assert [*found] == ["caption.pt2"] and found["caption.pt2"] < 1e-5
    return folder


def test_the_description_says_what_goes_in_and_comes_out_and_what_was_measured(answering):
    trained, folder = load_model(answering / "run"), answering / "programs"
    described = json.loads((folder / "program.json").read_text())
    check_folder(folder, "")
    (answer,) = described["programs"].values()
    arrays = {**image_arrays(trained.processor, make_regions(3)), "words": np.array([7, 8])}
    assert answer["largest_difference"]["answer.onnx"] < described["tolerance"]["largest_difference"] == 1e-4
    for given in answer["inputs"]:
        array = arrays.pop(given["name"])
        assert given["dtype"] == str(array.dtype)
        assert all(size in (length, str(size)) for size, length in zip(given["shape"], array.shape, strict=True))
    assert not arrays and answer["labels"] == list(EVERYTHING["answers"])
    assert described["weights_sha256"] == trained.weights_sha256
    assert described["extractor"]["fingerprint"] == trained.processor.extractor.fingerprint
    assert str(Path(program.__file__).parent).encode() not in (folder / "answer.onnx").read_bytes()


WITHOUT = """
import runpy, sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("dimvl", "transformers", "tokenizers", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def printed(script, folder, name, *text):
    """What an example prints where dimvl cannot be imported."""
    regions = folder / "regions.npz"
    np.savez(regions, **image_arrays(load_model(folder / "run").processor, make_regions(3)))
    command = [sys.executable, "-W", "error", "-c", WITHOUT, str(EXAMPLES / script), str(folder / "programs"), name]
    return subprocess.run(
        [*command, str(regions), *text], capture_output=True, text=True, check=True, cwd=folder
    ).stdout


def test_the_examples_run_without_dimvl_and_find_what_the_predictor_finds(answering, captioning):
    question = "Is the RED star, a circle?"
    answer = Predictor(load_model(answering / "run"), answering).answer(make_regions(3), question)
    lines = [line.split() for line in printed("run_onnx.py", answering, "answer", question).splitlines()]
    assert [name for _, name in lines] == [name for name, _ in answer.top]
    logits = torch.tensor([float(logit) for logit, _ in lines])
    assert logits.sigmoid().tolist() == pytest.approx([value for _, value in answer.top], abs=1e-3)
    trained, words = load_model(captioning / "run"), list[int]()
    (what,), tokenizer = forwards_of(trained.processor), trained.processor.tokenizer
    prefix = make_prefix(make_regions(3), trained.processor.tags)
    while len(words) < trained.processor.text_tokens:
        words.append(int(what.eager(trained, prefix, np.array(words, np.int64))[0].argmax()))
    ended = [*words, tokenizer.sep].index(tokenizer.sep)
    assert printed("run_program.py", captioning, "caption").strip() == tokenizer.decode(words[:ended])


def test_the_tokenizer_of_the_examples_is_that_of_the_model():
    script = spec_from_file_location("run_program", EXAMPLES / "run_program.py")
    example = module_from_spec(script)
    script.loader.exec_module(example)
    tokenizer = Tokenizer.train(["café naïve straße", "x_y, it's 3.5$!", "中文 большой", "a red circle"], 200)
    settings, generator = json.loads(tokenizer._inner.to_str()), random.Random(0)
    letters = "abcdeRSTr  _-'!?.$+<=^`|~\t\n\x0b\x00\x7f\xa0\u200b\u0301éÉßİ€\u2019中\uff01\u0431😀"
    letters += "\ufffd\u2028\xad\u0378\ue000"
    texts = ["".join(generator.choices(letters, k=generator.randrange(14))) for _ in range(1000)]
    for text in [*texts, "a" * 101, "unknown words"]:
        assert example.word_pieces(text, settings) == tokenizer.encode(text), repr(text)
    parts = [(EXAMPLES / name).read_text().partition("CHINESE")[2] for name in ("run_program.py", "run_onnx.py")]
    assert len({part.partition("def main")[0] for part in parts}) == 1


def test_the_arrays_of_an_image_are_those_of_its_best_regions():
    processor = all_abilities(max_regions=3, times=True)
    found = image_arrays(processor, make_regions(1, "1", 5), make_regions(2, "2", 2), times=[1, 2.5])
    assert found["features"].shape == (5, 6) and found["image_index"].tolist() == [0, 0, 0, 1, 1]
    assert found["times"].tolist() == [1, 1, 1, 2.5, 2.5] and found["tags"].dtype == np.int64
    alone = make_prefix(make_regions(2, "2", 2), processor.tags).context
    assert image_arrays(processor, make_regions(2, "2", 2))["tags"].tolist() == alone[1:-1].tolist()


def test_mistakes_are_named_and_nothing_is_written(answering, tmp_path, monkeypatch, capsys):
    source, out = answering / "run", tmp_path / "out"

    def export(*arguments):
        return call(monkeypatch, capsys, "export", *arguments)

    refused(export(source, answering / "programs", "--program"), "exists; choose a new folder")
    refused(export(source, out, "--program", "--where", "none"), "--where is for writing an export, not programs")
    with monkeypatch.context() as patched:
        patched.setattr(program, "find_spec", lambda name: None if name == "onnxscript" else name)
        refused(export(source, out, "--onnx"), "needs the package onnxscript", "pip install 'dimvl[onnx]'")
    refused(export(source_of(tmp_path), out, "--program"), "nothing that", "can be a program")
    monkeypatch.setattr(program, "_attend", lambda query, key, value, mask: 1.01 * value)
    with pytest.raises(UserError, match=r"answer\.pt2 differs from the model by"):
        write_programs(source, out)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_differences_are_relative_above_1_and_infinite_where_shapes_or_infinities_differ():
    one = torch.tensor([100.0, 0.5, float("-inf")])
    assert difference([one], [one + torch.tensor([1.0, 0.008, 0.0])]) == pytest.approx(0.01)
    assert difference([one], [torch.zeros(3)]) == difference([one], [one[:2]]) == float("inf")
    assert difference([one], [one * float("nan")]) == float("inf") and difference([one[:0]], [one[:0]]) == 0
