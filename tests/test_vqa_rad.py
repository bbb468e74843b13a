"""tools/run_vqa_rad.py and docs/radiology.md: what is held out and scored, without training."""

import json
from pathlib import Path
from typing import Any

import pytest

from dimvl.files import read_json
from dimvl.tasks import load_config
from tools import run_vqa_rad, write_results

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "radiology.md", ROOT / "docs" / "results" / "vqa_rad.json"


def question(number: int, image: str, text: str, answer: str = "no", kind: str = "CLOSED") -> dict[str, Any]:
    return {"question_id": number, "image": image, "question": text, "answer": answer, "answer_type": kind}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_fifth_of_the_questions_is_held_out_and_one_that_was_asked_twice_is_on_one_side(tmp_path: Path) -> None:
    texts = ["Is there a mass?", "is there a mass", "Where is the mass?", "Is this a CT?", "Is the heart large?"]
    asked = [
        question(5 * image + place, f"{image}.jpg", text) for image in range(60) for place, text in enumerate(texts)
    ]
    write_lines(tmp_path / "data" / run_vqa_rad.QUESTIONS, asked)
    for _ in range(2):
        run_vqa_rad.lay_out(tmp_path / "data", tmp_path / "out")
        train, held_out = (
            run_vqa_rad.read_lines(tmp_path / "out" / "questions" / f"{name}.jsonl") for name in ("train", "held_out")
        )
        assert (train, held_out) == run_vqa_rad.split(asked), "a second start changes nothing"
    assert run_vqa_rad.by_id([*train, *held_out]) == asked
    captions = run_vqa_rad.read_lines(tmp_path / "out" / "captions" / "train.jsonl")
    assert captions == [{"image": record["image"], "caption": record["question"]} for record in train], "no answers"
    keys = [{run_vqa_rad.question_key(record) for record in part} for part in (train, held_out)]
    assert len(keys[1]) == 48 and not keys[0] & keys[1]
    assert {record["image"] for record in held_out} & {record["image"] for record in train}, "by question, not by image"


def test_a_question_in_other_words_is_one_about_the_same_image_with_the_same_answer() -> None:
    usual = [question(100 + number, "other.jpg", f"is there a the in this {number}") for number in range(40)]
    train = [
        question(1, "1.jpg", "Is there a pleural effusion?", "yes"),
        question(2, "1.jpg", "Is this in a CT?"),
        *usual,
    ]
    held_out = [
        question(20, "1.jpg", "is there evidence of the effusion", "yes"),
        question(10, "1.jpg", "Is a pleural effusion in this?", "yes"),
        question(11, "1.jpg", "Is there a pleural effusion?", "no"),
        question(12, "2.jpg", "Is there a pleural effusion?", "yes"),
        question(13, "1.jpg", "Is there a fracture in this?", "yes"),
    ]
    words = run_vqa_rad.COMMON
    try:
        run_vqa_rad.COMMON = 5  # is, there, a, in, this
        assert run_vqa_rad.rephrased(train, held_out) == [True, False, False, False, False], "in the order of ids"
    finally:
        run_vqa_rad.COMMON = words


def write_evaluation(out: Path, seed: int, name: str, closed: list[float], opened: list[float]) -> None:
    kinds = ["CLOSED"] * len(closed) + ["OPEN"] * len(opened)
    items = [
        {"question_id": number, "image_id": f"{number // 2}.jpg", "answer_type": kind, "accuracy": accuracy}
        for number, (kind, accuracy) in enumerate(zip(kinds, [*closed, *opened], strict=True))
    ]
    write_lines(out / f"seed-{seed}" / name / "evaluation" / "items.jsonl", items[::-1])


def test_results_are_means_over_seeds_with_and_without_questions_in_other_words(tmp_path: Path) -> None:
    for seed, opened in enumerate(([0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1])):
        write_evaluation(tmp_path, seed, "vqa", [1, 1, 1, 0], opened)
        write_evaluation(tmp_path, seed, "question_only", [1, 0, 1, 0], [0, 0, 0, 0])
    held_out = [question(number, f"{number // 2}.jpg", f"word{number}") for number in range(8)]
    write_lines(tmp_path / "questions" / "held_out.jsonl", held_out)
    usual = [question(100 + number, "other.jpg", " ".join(f"usual{word}" for word in range(60))) for number in range(9)]
    write_lines(tmp_path / "questions" / "train.jsonl", [question(50, "0.jpg", "word0"), *usual])
    found = run_vqa_rad.results(tmp_path, [0, 1, 2])
    assert (found["closed"], found["open"], found["overall"]) == (0.75, 0.5, 0.625)
    assert found["questions"] == {"closed": 4, "open": 4, "overall": 8}
    assert found["by_seed"]["open"] == [0.25, 0.5, 0.75]
    half = 4.303 * 0.25 / 3**0.5  # Student's t with 2 degrees of freedom
    assert found["interval_of_seeds"]["open"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    assert found["interval_of_images"]["closed"] == [0.5, 1.0], "two images, with 1 and 1/2"
    assert (found["question_only"]["overall"], found["minus_question_only"]["overall"]) == (0.25, 0.375)
    assert found["not_rephrased"]["questions"] == {"closed": 3, "open": 4, "overall": 7}
    assert found["not_rephrased"]["closed"] == pytest.approx(2 / 3, abs=1e-4)
    found |= {"command": "python it", "hardware": "a CPU", "date": "2026-01-01"}
    rows = write_results.vqa_rad(found).splitlines()
    assert "mean of 3 seeds" in rows[0] and "`python it`, a CPU, 2026-01-01" in rows[0]
    assert rows[4].startswith("| with images | 0.750 (0.500 to 1.000) | 0.500 (") and len(rows) == 10


def test_the_table_of_the_page_is_what_its_file_says() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- results -->\n")
    written = rest.partition("<!-- /results -->")[0]
    assert written == (write_results.vqa_rad(read_json(RESULTS)) + "\n" if RESULTS.exists() else "")


def test_both_runs_have_the_same_text_encoder_and_steps_and_only_one_sees_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run_vqa_rad, "encoder", lambda: "minilm")
    planned = [stage for name in run_vqa_rad.RUNS for stage in run_vqa_rad.stages(name, 1, 2)]
    configs = [load_config(Path(stage.words[3]), stage.words[4:]) for stage in planned if stage.words[2] == "finetune"]
    seeing, blind = configs
    assert (seeing.inputs.max_regions, blind.inputs.max_regions) == (26, 0)
    assert seeing.model == blind.model and seeing.training.steps == blind.training.steps
    assert [stage.name for stage in planned][1::2] == [f"seed-1/{name}-scores" for name in run_vqa_rad.RUNS]
    assert all("--allow-trained-images" in stage.words for stage in planned[1::2])


def test_data_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run_vqa_rad.py", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        run_vqa_rad.main()
    assert "questions_train.jsonl does not exist; check the path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
