"""`--explain` and `--draw` of the commands that predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.drawing import draw_explanation
from dimvl.predictor import Predictor
from dimvl.regions.images import load_image
from tests.cli.calls import Run, refused
from tests.tiny_runs import TinyData


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


def test_the_regions_behind_any_result_are_drawn_on_its_images(
    run: Run, model: Path, image_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("star\ncircle\n")
    two = tmp_path / "two.png"
    Image.new("RGB", (40, 20), "black").save(two)
    commands = {
        "match": (image_file, "a star"),
        "answer": (image_file, "what is it?"),
        "choose": (image_file, "what is it?", "--candidate", "a star", "--candidate", "a circle"),
        "classify": (image_file, "--labels", tmp_path / "labels.txt"),
        "caption": (image_file, two, "--together", "--max-tokens", 4),
    }
    for command, arguments in commands.items():
        out = tmp_path / f"{command}.png"
        ended = run(command, *arguments, "--model", model, "--device", "cpu", "--explain", "--draw", out)
        assert ended.code == 0 and "drop when the region is removed" in ended.out, ended.err
        with Image.open(out) as drawn:
            assert drawn.width == (2 * 640 + 8 if command == "caption" else 640)
    explained = Predictor.from_pretrained(model, "cpu").explain(image_file, "a star", "match")
    with Image.open(tmp_path / "match.png") as drawn:
        expected = np.asarray(draw_explanation([load_image(image_file)], explained))
        assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 2, "probabilities are rounded differently"


def test_a_drawing_that_cannot_be_made_is_refused_before_a_model_is_opened(
    run: Run, image_file: Path, tmp_path: Path, data: TinyData
) -> None:
    (tmp_path / "file").write_text("")
    none = tmp_path / "no model"
    none.mkdir()
    for words, arguments in {
        "is for the regions of --explain; give both, or omit it": (image_file, "--draw", tmp_path / "out.png"),
        "needs image files, which a region store does not have": (
            *("--regions", data.regions, "--images", 1, "--explain"),
            *("--draw", tmp_path / "out.png"),
        ),
        "file is not a folder; choose another path": (image_file, "--explain", "--draw", tmp_path / "file" / "out.png"),
    }.items():
        refused(run("caption", *arguments, "--model", none), words)
