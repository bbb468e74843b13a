"""Annotations through the command line: matching with the store, and the guard of the splits."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from dimvl.checkpoints import latest_checkpoint
from dimvl.data.trained_on import FILE, hash_images, read_trained_on
from dimvl.errors import UserError
from dimvl.training.texts import own_images
from tests.cli.calls import Result, Run
from tests.factories import make_store
from tests.tiny_runs import TinyData, make_config, make_data


def refused(result: Result, *words: str) -> None:
    """Whether a command ended in one sentence with these words, and no traceback."""
    assert result.code == 2, result
    last = result.err.splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), result.err
    assert "Traceback" not in result.err


@pytest.fixture(autouse=True)
def no_official_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are not scored here: the protocol starts Java, which takes seconds."""

    def unavailable(*_: object) -> None:
        raise UserError("not here")

    monkeypatch.setattr("dimvl.tasks.captioning.prediction.caption_scores", unavailable)


@pytest.fixture
def data(tmp_path: Path) -> TinyData:
    return make_data(tmp_path / "data")


def write_config(tmp_path: Path, data: TinyData, task: str = "pretrain", **changes: object) -> Path:
    config = make_config(data, tmp_path / "runs" / task, task, training={"steps": 2}, **changes)
    path = tmp_path / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True) | {"task": task}))
    return path


def add_missing(data: TinyData) -> None:
    content = json.loads(data.captions.read_text())
    content["annotations"].append({"id": 9999, "image_id": 77, "caption": "a red star"})
    data.captions.write_text(json.dumps(content))


def test_a_missing_image_ends_training_before_it_starts_unless_it_may_be_skipped(
    run: Run, tmp_path: Path, data: TinyData, caplog: pytest.LogCaptureFixture
) -> None:
    add_missing(data)
    config = write_config(tmp_path, data)
    refused(run("pretrain", config), "lacks image '77'", "missing=skip")
    folder = tmp_path / "runs" / "pretrain"
    assert latest_checkpoint(folder) is None
    assert json.loads((folder / "match.json").read_text())["files"][0]["missing_examples"] == ["77"]
    result = run("pretrain", config, "missing=skip")
    assert result.code == 0 and "1 texts are dropped: image not in the store" in caplog.messages
    assert "6 of these are in the store (found by id), 1 are not" in caplog.text
    assert latest_checkpoint(folder) is not None, "the folder can be used again once the mistake is fixed"


def test_files_that_do_not_belong_to_the_store_are_refused_with_examples(
    run: Run, tmp_path: Path, data: TinyData
) -> None:
    data.captions.write_text(json.dumps({"annotations": [{"id": 1, "image_id": "dog", "caption": "a red star"}]}))
    refused(run("pretrain", write_config(tmp_path, data), "missing=skip"), "none of the 1 images", "'dog'", "'1', '2'")


def test_several_files_of_different_formats_train_together(run: Run, tmp_path: Path, data: TinyData) -> None:
    lines, pairs = tmp_path / "own.jsonl", tmp_path / "pairs.tsv"
    lines.write_text('{"image": 1, "caption": "a small star"}\n')
    pairs.write_text("a large star\tfolder/2.jpg\n")
    config = write_config(tmp_path, data)
    result = run("pretrain", config, f"captions=[{data.captions},{lines},{pairs}]")
    assert result.code == 0
    report = json.loads((tmp_path / "runs" / "pretrain" / "match.json").read_text())
    assert [file["found_by"] for file in report["files"]] == ["id", "id", "stem"]
    described = json.loads((tmp_path / "runs" / "pretrain" / "run.json").read_text())["data"]
    assert [described[f"captions {number}"]["file"] for number in (1, 2, 3)] == ["c.json", "own.jsonl", "pairs.tsv"]


def test_two_files_of_json_lines_without_ids_train_together_with_an_answer_list(
    run: Run, tmp_path: Path, data: TinyData, caplog: pytest.LogCaptureFixture
) -> None:
    lines, others, answers = tmp_path / "own.jsonl", tmp_path / "others.jsonl", tmp_path / "answers.json"
    records = [
        {"image": image, "question": "is it red?", "answer": "yes" if image % 2 else "no"} for image in range(1, 7)
    ]
    records.append({"image": 1, "question": "what is it?"})
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    others.write_text('{"image": 2, "question": "is it blue?", "answer": "blue"}\n' * 6)
    answers.write_text('["<unk>", "yes", "no"]')
    config = write_config(tmp_path, data, "vqa")
    result = run("finetune", config, f"questions=[{lines},{others}]", "annotations=[]", f"answers={answers}")
    assert result.code == 0 and result.err.endswith("left out: 1 text (question without an answer)\n")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("its first answer is '<unk>', which usually stands for no answer; it stays answer 0" in t for t in told)
    assert any(text.startswith("6 of 12 questions (50%) have an answer among the 3 kept") for text in told)
    folder = tmp_path / "runs" / "vqa"
    assert json.loads((folder / "processor.json").read_text())["answers"] == ["<unk>", "yes", "no"]
    place = ("--regions", data.regions, "--questions", lines, "--out", tmp_path / "out")
    lines.write_text("".join(json.dumps(record) + "\n" for record in records[:-1]))
    assert run("evaluate", folder, *place, "--allow-trained-images").code == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["count"] == 6


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["annotations=[]"], "no question has an answer"),
        (["questions=[{q},{q2}]", "annotations=[{a},{a}]"], "and another file both have question"),
        (["answers=none.json"], "none.json does not exist"),
        (["answers={other}"], "none of the 12 questions has one of the 2 answers of the run ('kite', 'boat', ...)"),
    ],
)
def test_questions_without_answers_and_duplicate_questions_are_refused(
    run: Run, tmp_path: Path, data: TinyData, overrides: list[str], words: str
) -> None:
    second = shutil.copy(data.questions, tmp_path / "second.json")
    (other := tmp_path / "other.json").write_text('["kite", "boat"]')
    given = [override.format(q=data.questions, q2=second, a=data.annotations, other=other) for override in overrides]
    refused(run("finetune", write_config(tmp_path, data, "vqa"), *given), words)


def test_a_model_is_evaluated_on_its_training_images_only_if_allowed(run: Run, tmp_path: Path, data: TinyData) -> None:
    first = write_config(tmp_path, data)
    assert run("pretrain", first).code == 0
    later = TinyData(
        make_store(tmp_path / "later", 9), data.captions, *(tmp_path / name for name in ("q.json", "a.json"))
    )
    content = {"annotations": [{"id": n, "image_id": n, "caption": "a star"} for n in (7, 8)]}
    later.captions.write_text(json.dumps(content))
    second = write_config(tmp_path, later, "caption", initial=tmp_path / "runs" / "pretrain")
    assert run("finetune", second).code == 0
    model = tmp_path / "runs" / "caption"
    assert len(read_trained_on(model)) == 8, "six of the pretraining and two of its own"
    own = own_images(model)
    assert own is not None and own.tolist() == sorted(hash_images("78").tolist()), "its texts tell them apart"
    given = ("--regions", later.regions, "--out", tmp_path / "out", "--beams", 1, "--captions", tmp_path / "test.jsonl")

    def about(*images: int) -> None:
        lines = [json.dumps({"image": image, "caption": "a star"}) for image in images]
        (tmp_path / "test.jsonl").write_text("\n".join(lines))

    about(9, 1, 7)
    refused(run("evaluate", model, *given), "was trained on 2 of the 3 images", "'1', '7'", "--allow-trained-images")
    assert not (tmp_path / "out").exists()
    assert run("evaluate", model, *given, "--allow-trained-images").code == 0
    about(9)
    assert run("evaluate", model, *given).code == 0
    (model / FILE).unlink()
    refused(run("evaluate", model, *given), f"lacks {FILE}")


def test_evaluation_refuses_missing_images_unless_skipped_and_writes_ids_as_in_the_annotations(
    run: Run, tmp_path: Path, data: TinyData, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("finetune", write_config(tmp_path, data, "caption")).code == 0
    store = tmp_path / "named"
    shutil.copytree(data.regions, store)
    images = [
        {
            "filename": f"{image}.jpg",
            "cocoid": 1000 + image,
            "split": split,
            "sentences": [{"raw": "a", "sentid": image}],
        }
        for image, split in ((1, "test"), (2, "test"), (3, "val"), (77, "test"))
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    given = ("--regions", store, "--out", tmp_path / "out", "--captions", path, "--allow-trained-images", "--beams", 1)
    model = tmp_path / "runs" / "caption"
    refused(run("evaluate", model, *given), "has the splits test (3 images), val (1 images)")
    refused(run("evaluate", model, *given, "--split", "test"), "lacks image '1077'", "--skip-missing")
    result = run("evaluate", model, *given, "--split", "test", "--skip-missing")
    assert result.code == 0 and "1 of 3 texts are dropped" in caplog.text
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [record["image_id"] for record in written] == [1001, 1002]
    refused(run("evaluate", model, "--regions", store, "--questions", path), "--questions", "does not apply to")


def test_a_run_names_its_images_only_by_hashes(run: Run, tmp_path: Path, data: TinyData) -> None:
    assert run("pretrain", write_config(tmp_path, data)).code == 0
    hashes = np.load(tmp_path / "runs" / "pretrain" / FILE, allow_pickle=False)
    assert hashes.dtype == np.uint64 and len(hashes) == 6
