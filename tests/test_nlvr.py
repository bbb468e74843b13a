"""tools/run_nlvr.py: its folds, its boxes, how it goes on, and what it makes of scores; without training."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dimvl.data.annotations import read_items
from dimvl.errors import UserError
from dimvl.regions.detectors.given_boxes import GivenBoxes
from tools import run_nlvr


def statement(prefix: int, place: int, sentence: str = "") -> dict[str, Any]:
    one = {"x_loc": 10, "y_loc": 60, "size": 20, "color": "#0099ff", "type": "square"}
    own = {"identifier": f"{prefix}-{place}", "sentence": sentence or f"there are {prefix} boxes .", "label": "true"}
    return own | {"structured_rep": [[one], [one | {"color": "Black"}], [one]], "image": f"{prefix}.png"}


def test_statements_of_one_prefix_number_or_one_sentence_are_never_in_two_parts() -> None:
    records = [statement(prefix, place) for prefix, place in product(range(40), range(3))]
    records += [statement(prefix, 9, "the same") for prefix in (3, 5, 7)]
    records += [statement(prefix, 8, "another") for prefix in (7, 30)]
    own = run_nlvr.folds(records)
    assert set(own) == set(range(run_nlvr.FOLDS)) and own == run_nlvr.folds(records)
    by_prefix = {
        prefix: {f for f, one in zip(own, records, strict=True) if one["image"] == f"{prefix}.png"}
        for prefix in range(40)
    }
    assert all(len(found) == 1 for found in by_prefix.values())
    assert by_prefix[3] == by_prefix[5] == by_prefix[7] == by_prefix[30], "linked by their sentences"


def test_boxes_are_cut_out_and_training_has_them_in_all_orders(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "images").mkdir(parents=True)
    records = [statement(prefix, 0) for prefix in range(10)]
    (data / "statements.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for prefix in range(10):
        drawing = Image.new("RGB", (400, 100), "white")
        drawing.paste((0, 153, 255), (160, 60, 180, 80))
        drawing.save(data / "images" / f"{prefix}.png")
    run_nlvr.lay_out(data, out)
    first = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    run_nlvr.lay_out(data, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == first and len(first) == 30
    given = GivenBoxes.read(out / "boxes.json")
    assert [given.classes[label] for label in given.labels["4-0-box1"]] == ["black square"]
    assert given.boxes["4-0-box1"][0].tolist() == pytest.approx([0.1, 0.6, 0.3, 0.8])
    box = Image.open(out / "images" / "4-0-box1.png")
    assert (
        box.size == (200, 200) and box.getpixel((21, 121)) == (0, 153, 255) and box.getpixel((19, 121)) != (0, 153, 255)
    )
    for fold in range(run_nlvr.FOLDS):
        test, train = (read_items(out / "folds" / f"{part}-{fold}.jsonl").items for part in ("test", "train"))
        assert len(test) == 2 and len(train) == 8 * 6 and len({item.image_ids for item in train}) == 48
        assert not {image for item in test for image in item.image_ids} & {i for item in train for i in item.image_ids}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"structured_rep": [[{"color": "pink", "type": "square"}], [], []]}, "1-0-box0: .*pink.* is not an object of"),
        ({"image": None}, "has no field 'image'; add the file name of its drawing"),
        ({"structured_rep": None, "identifier": "dev-1-0-0"}, "is a file of NLVR2; give statements of NLVR, version 1"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    record = {name: value for name, value in {**statement(1, 0), **change}.items() if value is not None}
    (tmp_path / "statements.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (400, 100)).save(tmp_path / "images" / "1.png")
    with pytest.raises(UserError, match=words):
        run_nlvr.lay_out(tmp_path, tmp_path / "out")


def test_each_statement_counts_once_by_a_model_that_had_not_seen_it(tmp_path: Path) -> None:
    for seed, fold in product((0, 1, 2), range(run_nlvr.FOLDS)):
        folder = tmp_path / f"seed-{seed}" / f"fold-{fold}" / "evaluation"
        folder.mkdir(parents=True)
        right = float(fold < 3 + (seed == 2))
        items = [
            {"text_id": f"{fold}-{place}", "labels": ["true" if fold else "false"], "means": {"accuracy": right} | also}
            for place, also in enumerate(({"consistency": right}, {}))
        ]
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = run_nlvr.results(tmp_path, [0, 1, 2])
    assert found["by_seed"] == [0.6, 0.6, 0.8] and found["accuracy"] == found["consistency"] == pytest.approx(
        2 / 3, abs=1e-4
    )
    assert found["majority"] == 0.8 and found["statements"] == 10
    low, high = found["interval"]
    assert low < found["accuracy"] < high and high - low > 0.3, "statements of one prefix are drawn together"


def test_the_commands_of_each_fold_train_and_score_on_its_parts() -> None:
    planned = {stage.name: stage.words for stage in run_nlvr.stages([1], 2, ["initial=there"])}
    assert len(planned) == 1 + 2 * run_nlvr.FOLDS
    assert {"items=folds/train-3.jsonl", "seed=1", "initial=there"} <= set(planned["seed-1/fold-3"])
    assert "items=folds/test-3.jsonl" in planned["seed-1/fold-3-scores"]
