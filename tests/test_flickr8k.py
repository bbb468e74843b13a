"""tools/run_flickr8k.py: what it holds out, and what it makes of scores; without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.data.annotations import read_captions
from dimvl.files import read_json, write_json
from dimvl.tasks import load_config
from tools import run_flickr8k


def flickr(count: int, val: int) -> dict:
    """Karpathy's file of `count` images, the last `val` of which are for validation."""
    return {
        "images": [
            {
                "filename": f"{number}.jpg",
                "cocoid": number,
                "split": "val" if number >= count - val else "train",
                "sentences": [{"raw": f"A dog , number {number} .", "tokens": ["a", "dog"], "sentid": number}],
            }
            for number in range(count)
        ]
    }


def write_data(folder: Path, count: int, val: int) -> None:
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for number in range(count):
        image = Image.new("RGB", (16, 8), "white")
        image.paste("black", (2, 0, 6, 8))
        image.save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 32, "height": 16})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 0, 8, 16], "score": 0.5})
    write_json(folder / run_flickr8k.ANNOTATIONS, flickr(count, val))
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bar"}]}
    write_json(folder / run_flickr8k.BOXES, content)


def test_settings_are_chosen_on_training_images_that_are_held_out(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 700, val=50)
    parts = {}
    for development in (False, True):
        out = tmp_path / str(development)
        starts = []
        for _ in range(2):
            run_flickr8k.lay_out(tmp_path / "data", out, development)
            starts.append([read_json(out / "annotations" / f"{name}.json") for name in ("train", "held_out")])
        files, again = starts
        assert files == again, "a second start changes nothing"
        parts[development] = [{image["id"] for image in file["images"]} for file in files]
        copies = {image for image in parts[development][0] if image >= run_flickr8k.MIRRORED}
        parts[development][0] -= copies
        assert copies == {image + run_flickr8k.MIRRORED for image in parts[development][0]}
        assert files[0]["annotations"][0]["caption"] == "a dog", "punctuation is not trained"
        assert files[1]["annotations"][0]["caption"].endswith(" ."), "references stay as they are"
    train, val = parts[False]
    assert val == set(range(650, 700)) and train == set(range(650))
    smaller, held_out = parts[True]
    assert len(held_out) == run_flickr8k.DEVELOPMENT and smaller | held_out == train and not smaller & held_out


def test_a_training_image_is_also_there_mirrored_with_its_captions_and_boxes(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 3, val=1)
    run_flickr8k.lay_out(tmp_path / "data", tmp_path / "out")
    folder = tmp_path / "out" / "annotations"
    boxes, texts = read_json(folder / "boxes.json"), read_json(folder / "train.json")
    names = {image["id"]: image["file_name"] for image in boxes["images"]}
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == sorted(names.values())
    dark = {}
    for annotation in boxes["annotations"]:
        left, _, width, _ = annotation["bbox"]
        with Image.open(tmp_path / "out" / "images" / names[annotation["image_id"]]) as image:
            pixels = np.asarray(image.convert("L"), dtype=float).mean(0)
        dark[annotation["image_id"]] = (left, pixels[int(left / 2) : int((left + width) / 2)].mean() < 90)
    ids = [0, 1, 2, run_flickr8k.MIRRORED, run_flickr8k.MIRRORED + 1]
    assert dark == {image: (4 if image < 3 else 20, True) for image in ids}, "boxes lie where the bar is"
    by_image = {annotation["image_id"]: annotation["caption"] for annotation in texts["annotations"]}
    assert sorted(by_image) == [0, 1, *ids[3:]], "no copy of an image to score"
    assert len(read_captions(folder / "train.json")) == 4, "captions have ids of their own"


def test_data_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run_flickr8k.py", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        run_flickr8k.main()
    assert "dataset_flickr8k.json does not exist; check the path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_scores(out: Path, seed: int, run: str, cider: list[float]) -> None:
    folder = out / f"seed-{seed}" / run / "evaluation"
    folder.mkdir(parents=True)
    mean = sum(cider) / len(cider)
    write_json(folder / "scores.json", {"official": {"Bleu_4": mean / 2, "METEOR": mean / 4, "CIDEr": mean}})
    items = [{"image_id": place, "official": {"CIDEr": value}} for place, value in enumerate(cider)]
    (folder / "items.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in (items if run == "caption" else items[::-1]))
    )


def test_results_are_means_over_seeds_with_intervals_of_known_size(tmp_path: Path) -> None:
    for seed, cider in enumerate(([0.4, 0.6], [0.6, 0.8], [0.5, 0.7])):
        write_scores(tmp_path, seed, "caption", cider)
        for run in run_flickr8k.CAPTIONING[1:]:
            write_scores(tmp_path, seed, run, [0.1, 0.3])
    found = run_flickr8k.results(tmp_path, [0, 1, 2])
    assert (found["seeds"], found["bleu4"], found["meteor"], found["cider"]) == ([0, 1, 2], 0.3, 0.15, 0.6)
    assert found["by_seed"]["cider"] == [0.5, 0.7, 0.6]
    half = 4.303 * 0.1 / 3**0.5  # Student's t with 2 degrees of freedom; the values have standard deviation .1
    assert found["interval"]["cider"] == pytest.approx([0.6 - half, 0.6 + half], abs=1e-4)
    assert found["text_only"]["cider"] == 0.2 and found["text_only"]["interval"]["cider"] == [0.2, 0.2]
    assert found["no_pretraining"]["caption_minus_this"] == [0.4, 0.4, 0.4], "each image is better by .4"
    assert run_flickr8k.results(tmp_path, [1])["interval"]["cider"] is None, "one seed has no interval"
    shutil.rmtree(tmp_path / "seed-0" / "no_pretraining")
    shutil.rmtree(tmp_path / "seed-1" / "text_only")
    shutil.rmtree(tmp_path / "seed-0" / "text_only")
    found = run_flickr8k.results(tmp_path, [0, 1])
    assert "text_only" not in found and found["no_pretraining"]["seeds"] == [1], "a run has the seeds that were scored"
    assert found["no_pretraining"]["caption_minus_this"] == [0.5, 0.5, 0.5]


def test_recalls_are_means_over_the_seeds_that_were_scored_in_both_stages(tmp_path: Path) -> None:
    assert run_flickr8k.retrieval(tmp_path, [0]) == {}
    for seed, first in ((0, 0.2), (2, 0.4)):
        values = {"r1": first, "r5": 0.5, "r10": 0.6}
        sides = {"image_to_text": values, "text_to_image": {**values, "r1": first / 2}}
        scores = {"candidates": 16, **sides, "embedding_only": {**sides, "text_to_image": {**values, "r1": 0.1}}}
        folder = tmp_path / f"seed-{seed}" / "retrieve" / "evaluation"
        folder.mkdir(parents=True)
        write_json(folder / "scores.json", scores)
    found = run_flickr8k.retrieval(tmp_path, [0, 1, 2])
    assert found["seeds"] == [0, 2] and found["candidates"] == 16
    assert (found["image_to_text"]["r1"], found["text_to_image"]["r1"]) == (0.3, 0.15)
    assert found["text_to_image"]["by_seed"]["r1"] == [0.1, 0.2] and found["text_to_image"]["interval"]["r1"] is None
    assert found["embedding_only"]["text_to_image"]["r1"] == 0.1


def test_every_stage_is_a_command_of_its_own_and_every_run_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_flickr8k, "encoder", lambda: "minilm")
    planned = run_flickr8k.shared_stages()
    planned += [stage for run in run_flickr8k.RUNS for seed in (0, 1) for stage in run_flickr8k.stages(run, seed, 2)]
    names = [stage.name for stage in planned]
    assert len(set(names)) == len({(stage.name, *stage.words) for stage in planned}), "one name, one command"
    for run in run_flickr8k.RUNS:
        for seed in (0, 1):
            assert names.index(f"seed-{seed}/{run}") < names.index(f"seed-{seed}/{run}-scores")


def test_all_runs_of_a_seed_fit_together_and_those_alone_are_trained_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(run_flickr8k, "encoder", lambda: "minilm")
    configs = {
        stage.name: load_config(Path(stage.words[3]), stage.words[4:])
        for run in run_flickr8k.RUNS
        for stage in run_flickr8k.stages(run, 1, 2)
        if stage.words[2] in ("pretrain", "finetune")
    }
    pretrain, caption, alone, text, critical = (
        configs[f"seed-1/{name}"] for name in ("pretrain", *run_flickr8k.CAPTIONING)
    )
    assert {config.seed for config in configs.values()} == {1}
    assert (caption.initial, critical.initial) == (pretrain.output, caption.output)
    retrieve = configs["seed-1/retrieve"]
    assert retrieve.initial is None and retrieve.model.bert is not None and retrieve.inputs == pretrain.inputs
    assert alone.initial is None and alone.model.bert == text.model.bert == pretrain.model.bert
    assert caption.inputs == pretrain.inputs == alone.inputs == critical.inputs
    assert (text.inputs.max_regions, text.inputs.concepts) == (0, "none")
    assert alone.training.steps == pretrain.training.steps + caption.training.steps
