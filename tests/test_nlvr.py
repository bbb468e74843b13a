"""tools/run_nlvr.py: its folds, its regions, and what it makes of scores; without training."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dimvl.data.annotations import read_items
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from tests.cli.calls import call
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


def test_objects_become_regions_and_training_has_their_boxes_in_all_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path, tmp_path / "out"
    records = [statement(prefix, 0) for prefix in range(10)]
    (data / "statements.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run_nlvr.lay_out(data, out)
    first = {path: path.stat().st_mtime_ns for path in (out / "objects").iterdir()}
    run_nlvr.lay_out(data, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "objects").iterdir()} == first and len(first) == 30
    monkeypatch.chdir(out)
    words = run_nlvr.stages([0], 1, [])[0].words
    assert call(monkeypatch, capfd, *words[2:]).code == 0
    store = RegionStore(Path("stores/regions"))
    [place] = store.positions(["4-0-box1"])
    found = store.read(int(place))
    assert store.extractor.classes[found.class_ids[0][0]] == "square"
    assert [store.extractor.attributes[one] for one in found.attribute_ids[0] if one >= 0] == ["medium", "black"]
    assert found.boxes[0].tolist() == pytest.approx([0.1, 0.6, 0.3, 0.8], abs=1e-3)
    assert found.features[0].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    for fold in range(run_nlvr.FOLDS):
        test, train = (read_items(out / "folds" / f"{part}-{fold}.jsonl").items for part in ("test", "train"))
        assert len(test) == 2 and len(train) == 8 * 6 and len({item.image_ids for item in train}) == 48
        assert not {image for item in test for image in item.image_ids} & {i for item in train for i in item.image_ids}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"structured_rep": [[{"color": "pink", "type": "square"}], [], []]}, "1-0-box0: .*pink.* is not an object of"),
        ({"structured_rep": None, "identifier": "dev-1-0-0"}, "is a file of NLVR2; give statements of NLVR, version 1"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    record = {name: value for name, value in {**statement(1, 0), **change}.items() if value is not None}
    (tmp_path / "statements.jsonl").write_text(json.dumps(record) + "\n")
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
