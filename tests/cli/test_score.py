"""`dimvl score` and what `dimvl evaluate` writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dimvl.files import sha256
from tests.cli.calls import Run
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_extractor
from tests.tiny_runs import TinyData


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def write_answers(folder: Path, data: TinyData, **changes: str) -> Path:
    """Everybody's first answer to each question, in the official submission format."""
    said = json.loads(data.annotations.read_text())["annotations"]
    answers = {str(record["question_id"]): record["answers"][0]["answer"] for record in said} | changes
    path = folder / "answers.json"
    path.write_text(json.dumps([{"question_id": int(number), "answer": text} for number, text in answers.items()]))
    return path


def write_captions(folder: Path, data: TinyData) -> Path:
    """Each image's first caption, in the official submission format."""
    first: dict[int, str] = {}
    for record in json.loads(data.captions.read_text())["annotations"]:
        first.setdefault(record["image_id"], record["caption"])
    path = folder / "captions.json"
    path.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in first.items()]))
    return path


def test_answers_are_scored_without_a_model(run: Run, tmp_path: Path, data: TinyData) -> None:
    files = ("score", "vqa", "--questions", data.questions, "--annotations", data.annotations, "--predictions")
    code, out, _ = run(*files, write_answers(tmp_path, data), "--json")
    scores = json.loads(out)
    assert code == 0 and (scores["overall"], scores["count"]) == (1.0, 12)
    assert scores["official"] == {"overall": 100.0, "perAnswerType": {"other": 100.0}, "perQuestionType": {"": 100.0}}
    wrong = write_answers(tmp_path, data, **{"10": "nobody said that"})
    kinds = "perAnswerType:\n  other: 91.67\nperQuestionType:\n  (none): 91.67\n"
    assert run(*files, wrong)[1] == f"questions: 12\noverall: 91.67\n{kinds}"


def test_a_question_with_one_answer_scores_1_if_it_is_predicted(
    run: Run, tmp_path: Path, data: TinyData, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions, predictions = tmp_path / "questions.jsonl", tmp_path / "predictions.json"
    records = [
        {"image": number, "question": "what is it?", "question_id": number, "answer": answer}
        for number, answer in enumerate(["T-shirt", "red", "two", ""], start=1)
    ]
    del records[3]["answer"]
    questions.write_text("\n".join(map(json.dumps, records)))
    said = {1: "t shirt", 2: "blue", 3: "2", 4: "red"}
    predictions.write_text(json.dumps([{"question_id": number, "answer": text} for number, text in said.items()]))
    code, out, err = run("score", "vqa", "--questions", questions, "--predictions", predictions)
    assert code == 0 and out.startswith("questions: 3\noverall: 66.67\n")
    few, unanswered = err.splitlines()
    assert "3 of 3 questions have answers of fewer than 4 people" in few and unanswered.startswith("1 of 4 questions")
    code, out, err = run("evaluate", trained, "--regions", data.regions, "--questions", questions)
    scores = json.loads(out)
    assert code == 0 and (scores["count"], scores["few_people"], scores["unanswered"]) == (3, 3, 1)
    assert [few, unanswered] == caplog.messages[-2:], "an evaluation logs the same"
    items = [json.loads(line) for line in (trained / "evaluation/items.jsonl").read_text().splitlines()]
    assert [item.get("accuracy") in (0.0, 1.0) for item in items] == [True, True, True, False]


def test_captions_are_scored_without_a_model(run: Run, tmp_path: Path, data: TinyData) -> None:
    pytest.importorskip("pycocoevalcap.bleu")
    files = ("score", "caption", "--annotations", data.captions, "--predictions", write_captions(tmp_path, data))
    code, out, _ = run(*files, "--tokenised", "--json")
    scores = json.loads(out)
    assert code == 0 and (scores["count"], scores["references"]) == (6, 12)
    assert scores["official"]["Bleu_1"] == pytest.approx(1) and set(scores["left_out"]) == {"METEOR", "SPICE"}
    code, out, err = run(*files, "--tokenised")
    assert code == 0 and "ROUGE_L: 1.0000" in out and "METEOR is missing: Java is not on PATH" in err
    code, out, err = run(*files)
    assert (code, out) == (2, "") and err.startswith("error: Java is not on PATH") and len(err.splitlines()) == 1


def test_a_prediction_file_that_does_not_fit_is_one_sentence(run: Run, tmp_path: Path, data: TinyData) -> None:
    files = ("--questions", data.questions, "--annotations", data.annotations)
    answers = write_answers(tmp_path, data)
    answers.write_text(json.dumps(json.loads(answers.read_text())[2:]))
    code, out, err = run("score", "vqa", *files, "--predictions", answers)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith(f"error: {answers} lacks 2 questions (10, 11) of 12")
    code, out, err = run("score", "caption", "--annotations", data.captions, "--predictions", answers, "--tokenised")
    assert (code, out) == (2, "") and "item 0 has no field 'image_id'" in err


@pytest.mark.parametrize("command", ["vqa", "caption"])
def test_scoring_imports_neither_torch_nor_training_code(tmp_path: Path, data: TinyData, command: str) -> None:
    given = {"vqa": write_answers, "caption": write_captions}[command](tmp_path, data)
    files = ["--annotations", data.annotations, "--questions", data.questions]
    files = files if command == "vqa" else ["--annotations", data.captions, "--tokenised"]
    arguments = ["dimvl", "score", command, *map(str, files), "--predictions", str(given)]
    code = f"import sys; sys.argv = {arguments}\nimport dimvl.cli\ndimvl.cli.app(standalone_mode=False)\n"
    code += "print(*sys.modules)"
    command_line, no_java = [sys.executable, "-c", code], {"PATH": ""}
    loaded = subprocess.run(command_line, env=no_java, capture_output=True, text=True, check=True).stdout.split()
    assert "dimvl.metrics.predictions" in loaded and not {"torch", "transformers", "dimvl.pretrained"} & set(loaded)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", make_trained(all_abilities(make_extractor())))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "config": {**run["config"], "seed": 7}}))
    return folder


def test_an_evaluation_can_be_read_rescored_and_traced(run: Run, tmp_path: Path, data: TinyData, trained: Path) -> None:
    out = tmp_path / "out"
    files = ("--questions", data.questions, "--annotations", data.annotations)
    assert run("evaluate", trained, "--regions", data.regions, "--out", out, *files)[0] == 0
    scores = json.loads((out / "scores.json").read_text())
    again = json.loads(run("score", "vqa", *files, "--predictions", out / "predictions.json", "--json")[1])
    assert {name: scores[name] for name in again} == again
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert sum(item["accuracy"] for item in items) / 12 == pytest.approx(scores["overall"])
    keys = {"question_id", "image_id", "question", "prediction", "answers", "answer_type", "accuracy"}
    assert set(items[0]) == keys
    manifest = json.loads((out / "manifest.json").read_text())
    weights = trained / "checkpoints" / "step-00000003" / "model.safetensors"
    assert manifest["model"]["weights"] == "checkpoints/step-00000003/model.safetensors"
    assert manifest["model"]["sha256"] == sha256(weights)
    assert {name: file["sha256"] for name, file in manifest["data"].items()} == {
        "questions": sha256(data.questions),
        "annotations": sha256(data.annotations),
    }
    assert manifest["regions"][0]["manifest_sha256"] == sha256(data.regions / "manifest.json")
    assert manifest["predictions_sha256"] == sha256(out / "predictions.json")
    assert {"dimvl", "torch"} <= set(manifest["versions"]) and manifest["seed"] == 7
    assert run("export", trained, tmp_path / "export", "--where", "none")[0] == 0
    place = ("--regions", data.regions, "--out", tmp_path / "of-export")
    assert run("evaluate", tmp_path / "export", *place, *files)[0] == 0
    of_export = json.loads((tmp_path / "of-export" / "manifest.json").read_text())
    assert of_export["model"]["trained_by"] == manifest["model"]["trained_by"] and of_export["seed"] == 7
    assert str(tmp_path) not in (out / "manifest.json").read_text(), "no folder of a machine"


def test_captions_record_how_they_were_decoded_and_replace_old_scores(
    run: Run, tmp_path: Path, data: TinyData, trained: Path
) -> None:
    out = tmp_path / "out"
    place = ("evaluate", trained, "--regions", data.regions, "--out", out)
    assert run(*place, "--questions", data.questions, "--annotations", data.annotations)[0] == 0
    decoding = {"beams": 2, "max_tokens": 6, "length_penalty": 0.5, "block_ngrams": 2}
    typed = [word for name, value in decoding.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, out_text, _ = run(*place, "--captions", data.captions, *typed)
    assert code == 0 and "Java is not on PATH" in json.loads(out_text)["left_out"]["official"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"].items() >= decoding.items() and set(manifest["data"]) == {"captions"}
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(items) == 6 and set(items[0]) == {"image_id", "prediction", "references", "means"}
    assert max(len(item["prediction"].split()) for item in items) <= 5
    assert run(*place, "--questions", data.questions)[0] == 0
    assert not (out / "scores.json").exists(), "scores of other predictions are removed"
