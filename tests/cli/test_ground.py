"""`dimvl ground`: regions of phrases, printed and drawn."""

import json

from PIL import Image


def size_of(file):
    with Image.open(file) as image:
        return image.size


def test_a_phrase_prints_its_region_and_several_print_one_object_each(run, model, image_file, tmp_path):
    one = run("ground", image_file, "a star", "--model", model, "--top", 2, "--draw", tmp_path / "found.png")
    assert one.code == 0, one.err
    assert len(one.out.splitlines()) == 2 and one.out.splitlines()[0].endswith(")")
    assert max(size_of(tmp_path / "found.png")) == 640

    several = run("ground", image_file, "a star", "the circle", "--model", model)
    records = [json.loads(line) for line in several.out.splitlines()]
    assert [record["phrase"] for record in records] == ["a star", "the circle"]
    width, height = size_of(image_file)
    for record in records:
        x1, y1, x2, y2 = record["box"]
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and record["no_region"] == 0
        assert record["regions"][0]["box"] == record["box"]


def test_mistakes_are_one_sentence_before_anything_is_written(run, model, image_file, tmp_path):
    for message, arguments in {
        "text 1 of 1 is empty": (image_file, " ", "--model", model),
        "does not exist": (tmp_path / "none.png", "a star", "--model", model),
        "is a folder": (tmp_path, "a star", "--model", model),
    }.items():
        result = run("ground", *arguments, "--draw", tmp_path / "out.png")
        assert result.code == 2 and message in result.err, result.err
        assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "out.png").exists()
