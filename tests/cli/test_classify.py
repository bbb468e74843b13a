"""`dimvl classify` from end to end."""

import json
from pathlib import Path

import pytest

from dimvl.predictor import Predictor
from tests.cli.calls import Run, refused
from tests.exports import make_image


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("star\ncircle\nsquare\n")
    return tmp_path / "labels.txt"


def test_labels_of_images_and_of_a_store_are_printed_with_their_probabilities(
    run: Run, tmp_path: Path, model: Path, labels: Path
) -> None:
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{number}.png" for number in (1, 2)]
    for number, file in enumerate(files):
        make_image(number).save(file)
    expected = Predictor.from_pretrained(model).classify(files, ["star", "circle", "square"])
    one = run("classify", files[0], "--labels", labels, "--model", model)
    assert one.code == 0 and one.out.strip() == expected[0][0][0]
    two = run("classify", files[0].parent, "--labels", labels, "--model", model, "--top", 2, "--json")
    found = [json.loads(line) for line in two.out.splitlines()]
    for file, record, (best, second, _) in zip(files, found, expected, strict=True):
        assert record["image"] == str(file) and record["label"] == best[0] == record["top"][0][0]
        assert record["probability"] == pytest.approx(best[1], abs=1e-5) and record["top"][1][0] == second[0]
    (tmp_path / "templates.txt").write_text("a small {}\n")
    shown = run("classify", *files, "--labels", labels, "--model", model, "--templates", tmp_path / "templates.txt")
    assert shown.code == 0 and [line.partition(": ")[0] for line in shown.out.splitlines()] == list(map(str, files))


def test_what_cannot_be_classified_is_one_sentence(
    run: Run, image_file: Path, model: Path, labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("star\n")
    refused(run("classify", image_file, "--labels", tmp_path / "one.txt", "--model", model), "only the class 'star'")
    refused(run("classify", image_file, "--labels", tmp_path / "no.txt", "--model", model), "no.txt does not exist")
    refused(run("classify", "--labels", labels, "--model", model), "no images are given")
    refused(run("classify", image_file, "--model", model), "the model has no labels of its own; give a file")
    refused(run("classify", image_file, "--templates", labels, "--model", model), "omit it, or give --labels")
