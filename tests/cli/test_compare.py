"""`dimvl compare`: differences between evaluations of the same items, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimvl.files import write_json
from dimvl.metrics.intervals import mean_interval
from tests.cli.calls import Run, refused

IMAGES, QUESTIONS = 40, 3
RIGHT = np.random.default_rng(4).random(IMAGES * QUESTIONS) < 0.5


def write_evaluation(folder: Path, right: np.ndarray, weights: str = "", **changes: Any) -> Path:
    """What `dimvl evaluate` writes for questions of which some are answered rightly; `changes` go into item 1."""
    folder.mkdir(parents=True)
    items = [
        {
            "question_id": number,
            "image_id": number // QUESTIONS,
            "question": f"question {number}?",
            "answers": ["yes"],
            "prediction": "yes" if own else "no",
            "accuracy": float(own),
        }
        for number, own in enumerate(right)
    ]
    items[1] |= changes
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_json(folder / "scores.json", {"task": "vqa", "overall": float(np.mean(right)), "by_kind": {}})
    write_json(folder / "manifest.json", {"model": {"sha256": weights or str(folder)}})
    return folder


def flipped(share: float, seed: int) -> np.ndarray:
    """`RIGHT` with a share of the wrong answers corrected."""
    return RIGHT | (np.random.default_rng(seed).random(len(RIGHT)) < share)


def test_a_difference_is_paired_and_claimed_only_if_its_interval_excludes_zero(run: Run, tmp_path: Path) -> None:
    first, better = write_evaluation(tmp_path / "a", RIGHT), write_evaluation(tmp_path / "b", flipped(0.3, 0))
    other = write_evaluation(tmp_path / "c", np.random.default_rng(9).permutation(RIGHT))
    code, out, err = run("compare", first, better, other, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and not err and [record["setting"] for record in records] == [str(better), str(other)]
    gain, nothing = records
    images = np.arange(len(RIGHT)) // QUESTIONS
    expected = flipped(0.3, 0).astype(float) - RIGHT
    assert gain["difference"] == pytest.approx(expected.mean())
    assert gain["over_images"] == pytest.approx(mean_interval(expected, images.tolist()))
    assert (gain["verdict"], gain["score"], gain["over_seeds"]) == ("higher", "overall", None)
    assert nothing["over_images"][0] < 0 < nothing["over_images"][1]
    assert nothing["verdict"] == "no difference can be claimed"
    text = run("compare", better, first).out
    assert "120 items of 40 images" in text and "lower" in text and "needs 3 seeds" in text


def test_seeds_are_averaged_and_what_they_do_not_share_is_not_claimed(run: Run, tmp_path: Path) -> None:
    def group(name: str, shares: tuple[float, ...]) -> str:
        folders = [
            write_evaluation(tmp_path / f"{name}{seed}", flipped(share, seed)) for seed, share in enumerate(shares)
        ]
        return f"{name}={','.join(map(str, folders))}"

    none, steady = group("none", (0.0, 0.0, 0.0)), group("steady", (0.3, 0.3, 0.3))
    lucky = group("lucky", (0.0, 0.0, 0.9))
    code, out, _ = run("compare", none, steady, lucky, "--json")
    first, second = map(json.loads, out.splitlines())
    means = [flipped(0.3, seed).mean() for seed in range(3)]
    assert code == 0 and first["value"] == pytest.approx(np.mean(means)) and first["baseline"] == "none"
    assert first["verdict"] == "higher" and first["over_seeds"][0] > 0
    assert second["over_images"][0] > 0 > second["over_seeds"][0], "one lucky seed of three"
    assert second["verdict"] == "no difference can be claimed"
    assert "lucky (3 seeds)" in run("compare", none, lucky).out


def test_items_are_matched_by_their_ids_and_not_by_their_order(run: Run, tmp_path: Path) -> None:
    first, other = write_evaluation(tmp_path / "a", RIGHT), write_evaluation(tmp_path / "b", flipped(0.3, 1))
    expected = run("compare", first, other, "--json").out
    lines = (other / "items.jsonl").read_text().splitlines(keepends=True)
    (other / "items.jsonl").write_text("".join(reversed(lines)))
    assert run("compare", first, other, "--json").out == expected


def test_phrases_of_one_image_are_items_of_their_own_with_their_boxes(run: Run, tmp_path: Path) -> None:
    def write(folder: Path, right: np.ndarray, *box: float) -> Path:
        folder.mkdir()
        items = [
            {
                "id": number,
                "image_id": number // 4,
                "phrase": "a dog",
                "boxes": [[0, 0, 9, 9]],
                "means": {"accuracy": hit},
            }
            for number, hit in enumerate(right.tolist())
        ]
        items[2] |= {"boxes": [list(box)]} if box else {}
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        write_json(folder / "scores.json", {"task": "ground", "accuracy": float(np.mean(right))})
        write_json(folder / "manifest.json", {"model": {"sha256": folder.name}})
        return folder

    first, second = write(tmp_path / "a", np.array([1.0, 0, 0, 1] * 9)), write(tmp_path / "b", np.ones(36))
    assert "0.5" in run("compare", first, second).out
    other = write(tmp_path / "c", np.ones(36), 0, 0, 5, 5)
    refused(run("compare", first, other), "phrase 2 differs in boxes", "evaluate both with the same annotations")


def test_one_retrieval_model_compares_the_texts_of_several_captioners(run: Run, tmp_path: Path) -> None:
    texts = {name: {"weights": "finder", "query": f"a text of {name}"} for name in "abc"}
    first, better, third = (write_evaluation(tmp_path / name, flipped(0.3, 1), **texts[name]) for name in texts)
    assert run("compare", f"one={first},{better}", f"two={third}").code == 0
    other = write_evaluation(tmp_path / "other", RIGHT, weights="another", query="a text of a")
    assert run("compare", first, other).code == 0
    refused(run("compare", better, other), "question 1 differs in query", "evaluate both with the same annotations")


def test_what_cannot_be_compared_is_refused_with_what_differs(run: Run, tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", RIGHT)
    fewer = write_evaluation(tmp_path / "fewer", RIGHT[:-2])
    refused(run("compare", first, fewer), "2 items of", "are not in", "question 118, question 119", "same annotations")
    refused(run("compare", fewer, first), "2 items of", "evaluate both on the same annotations and images")
    told = write_evaluation(tmp_path / "told", RIGHT, answers=["no"])
    refused(run("compare", first, told), "question 1 differs in answers", "evaluate both with the same annotations")
    caption = write_evaluation(tmp_path / "caption", RIGHT)
    write_json(caption / "scores.json", {"task": "caption", "overall": float(RIGHT.mean())})
    refused(run("compare", first, caption), "scores of task 'vqa' and", "of 'caption'; compare evaluations of one kind")
    twin = write_evaluation(tmp_path / "twin", flipped(0.1, 1), weights=str(first))
    refused(run("compare", fewer, f"two={first},{twin}"), "2 items of")
    refused(run("compare", f"two={first},{twin}", first), "are evaluations of the same model", "different seeds as two")
    assert run("compare", first, twin).code == 0, "one model, decoded in two ways"
    refused(run("compare", first), "is the only evaluation; give those to compare it with")
    refused(run("compare", first, first), f"{first} is named twice")
    refused(run("compare", first, "b="), "b= is not of the form NAME=FOLDER,FOLDER")
    refused(run("compare", first, f"b={tmp_path}/none"), "none does not exist")


def test_a_folder_that_is_damaged_or_no_evaluation_is_one_sentence(run: Run, tmp_path: Path) -> None:
    first, other = write_evaluation(tmp_path / "a", RIGHT), write_evaluation(tmp_path / "run" / "evaluation", RIGHT)
    refused(run("compare", first, tmp_path / "run"), "is not an evaluation; give", "run/evaluation")
    refused(run("compare", tmp_path, first), "is not an evaluation; give a folder that `dimvl evaluate` wrote")
    items, scores = other / "items.jsonl", other / "scores.json"
    whole = items.read_text()
    for text, words in (
        (whole[:-3], "not valid JSON"),
        ("", "is empty"),
        (whole + whole[: whole.index("\n") + 1], "has question 0 again"),
        (whole.replace('"accuracy": 1.0', '"accuracy": "high"'), "is damaged"),
        (whole.replace('"accuracy": 1.0', '"accuracy": 0.5', 1), "do not belong together"),
        ('{"prediction": "yes"}\n', "neither a question_id nor an image_id"),
        ("[1]\n", "is not a JSON object"),
    ):
        items.write_text(text)
        refused(run("compare", first, other), words, "run `dimvl evaluate` again")
    items.write_text(whole.replace("accuracy", "points"))
    refused(run("compare", other, first), "have no score in common")
    scores.unlink()
    refused(run("compare", first, other), "has no scores; evaluate the model with captions or answers")


def test_a_score_that_only_one_has_is_named_and_the_exit_code_is_1(run: Run, tmp_path: Path) -> None:
    first, other = write_evaluation(tmp_path / "a", RIGHT), write_evaluation(tmp_path / "b", RIGHT, kind="colour")
    scores = {"task": "vqa", "overall": float(RIGHT.mean()), "by_kind": {"colour": float(RIGHT[1])}}
    write_json(other / "scores.json", scores)
    code, out, err = run("compare", first, other, "--json")
    assert code == 1 and len(out.splitlines()) == 1
    assert err == "left out: by_kind / colour, which not all evaluations have\n"
