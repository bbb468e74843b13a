"""`--explain` of the commands that predict."""

import json
from pathlib import Path

import pytest

from dimvl.predictor import Predictor
from tests.cli.calls import Run, refused


def test_captions_and_matches_are_printed_with_the_regions_behind_them(run: Run, model: Path, image_file: Path) -> None:
    options, predictor = ("--model", model, "--device", "cpu", "--explain"), Predictor.from_pretrained(model, "cpu")
    captioned = predictor.explain(image_file, verb="caption", max_tokens=6)
    lines = run("caption", image_file, *options, "--max-tokens", 6).out.splitlines()
    assert lines[0] == captioned.result == predictor.caption(image_file, max_tokens=6)
    assert lines[1] == f"log-probability of {captioned.result!r}: {captioned.probability:.3f}"
    assert len(lines) == 4 + len(captioned.regions) + len(captioned.words) and captioned.words
    for word, line in zip(captioned.words, lines[-len(captioned.words) :], strict=True):
        assert f"  {word}: " in line
    record = json.loads(run("caption", image_file, *options, "--max-tokens", 6, "--json").out)
    assert record["words"] == list(captioned.words)
    drops = [region.probability_drop for region in captioned.regions]
    assert [region["log_probability_drop"] for region in record["regions"]] == pytest.approx(drops, abs=1e-3)

    matched = json.loads(run("match", image_file, "a red star", *options, "--json").out)
    assert matched["probability"] == pytest.approx(predictor.match(image_file, "a red star"), abs=1e-5)
    assert len(matched["regions"]) == len(drops) and "probability_drop" in matched["regions"][0]
    shown = run("match", image_file, "a red star", *options).out.splitlines()
    assert shown[1].startswith("probability of 'a red star': ") and len(shown) == 3 + len(drops)


def test_results_of_several_inputs_are_not_explained(run: Run, model: Path, image_file: Path) -> None:
    for command in (("caption", image_file.parent), ("match", image_file.parent, "a star")):
        refused(run(*command, "--model", model, "--explain"), "--explain needs one image and one question or text")
