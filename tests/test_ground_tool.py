"""tools/run_ground.py: what it trains on and scores, and what it makes of scores; without training."""

import json

import pytest

from dimvl.data.annotations import read_phrases
from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.tasks import load_config
from tools.run_ground import RUNS, lay_out, results, stages


@pytest.fixture
def places(tmp_path):
    data, trained = tmp_path / "data", tmp_path / "trained"
    data.mkdir()
    images = [
        {"filename": f"{n}.jpg", "cocoid": n, "split": "val" if n > 4 else "train", "sentences": []} for n in range(7)
    ]
    write_json(data / "dataset_flickr8k.json", {"images": images})
    lines = [{"id": 10 * n + k, "image": n, "phrase": "it", "boxes": [[1, 2, 3, 4]]} for n in range(7) for k in (0, 1)]
    (data / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("stores/regions", "encoder", "seed-1/pretrain"):
        (trained / name).mkdir(parents=True)
    return data, trained, tmp_path / "out"


def test_no_image_is_trained_on_and_scored_and_what_exists_is_used(places):
    data, trained, out = places
    for _ in range(2):  # a second call goes on
        lay_out(data, trained, out, [1])
    parts = {name: read_phrases(out / "annotations" / f"{name}.jsonl") for name in ("train", "held_out")}
    images = {name: {phrase.image_id for phrase in found} for name, found in parts.items()}
    assert images == {"train": {"0", "1", "2", "3", "4"}, "held_out": {"5", "6"}} and len(parts["train"]) == 10
    assert (out / "seed-1" / "pretrain").resolve() == (trained / "seed-1" / "pretrain").resolve()
    with pytest.raises(UserError, match=r"seed-2/pretrain does not exist; run tools/run_flickr8k.py with these seeds"):
        lay_out(data, trained, out, [1, 2])


@pytest.mark.parametrize("name", RUNS)
def test_each_stage_is_a_valid_command_on_what_was_laid_out(places, name, monkeypatch):
    data, trained, out = places
    lay_out(data, trained, out, [1])
    monkeypatch.chdir(out)
    training, scoring = stages(name, 1, 2, ["training.steps=900"])
    assert training.words[:4] == ["-m", "dimvl", "finetune", "configs/flickr8k/ground.yaml"]
    config = load_config(out / "configs" / "flickr8k" / "ground.yaml", training.words[4:])
    config.check_inputs()
    assert (config.initial is None) == (name == "no_pretraining") == (config.model.bert is not None)
    assert config.shared_prefix == (name != "together") and config.training.steps == 900
    assert "phrases=annotations/held_out.jsonl" in scoring.words


def test_results_are_means_over_seeds_with_the_difference_over_images(tmp_path):
    for name, right in (("ground", 3), ("no_pretraining", 1)):
        for seed in (0, 1, 2):
            hits = [float(place < right + (seed == 2)) for place in range(4)]
            items = [{"id": n, "image_id": n // 2, "means": {"accuracy": hit}} for n, hit in enumerate(hits)]
            scores = {"count": 4, "accuracy": sum(hits) / 4, "upper_bound": 1.0, "of_upper_bound": sum(hits) / 4}
            scores["baseline"] = 0.25
            folder = tmp_path / f"seed-{seed}" / name / "evaluation"
            write_json(folder / "scores.json", {**scores, "one_box": scores})
            (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items[::-1]))
    found = results(tmp_path, ["ground", "no_pretraining"], [0, 1, 2])
    assert found["accuracy"] == pytest.approx(10 / 12, abs=1e-4) and found["upper_bound"] == 1
    assert found["by_seed"]["accuracy"] == [0.75, 0.75, 1.0] and found["one_box"]["of_upper_bound"] == found["accuracy"]
    low, high = found["interval"]["accuracy"]
    assert low < found["accuracy"] < high
    mean, low, high = found["no_pretraining"]["ground_minus_this"]
    assert (
        mean == pytest.approx(0.5) and low == pytest.approx(1 / 3, abs=1e-4) and high == pytest.approx(2 / 3, abs=1e-4)
    )
