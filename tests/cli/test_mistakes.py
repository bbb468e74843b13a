"""What bad input does, from end to end: one sentence, exit code 2, and what was there is left."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.checkpoints import latest_checkpoint
from dimvl.export import FILES
from dimvl.trained_model import load_model
from tests.cli.calls import Run, refused, write_config
from tests.exports import make_image
from tests.factories import make_store
from tests.tiny_runs import TinyData


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def text_named_png(path: Path) -> None:
    path.write_text("I am not an image")


def bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "does not exist"),
        (truncated, "cannot be read"),
        (text_named_png, "is not an image"),
        (bomb, "has more than 67,108,864 pixels"),
    ],
)
def test_an_unusable_image_is_one_sentence(
    run: Run, image_file: Path, model: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(image_file)
    refused(run("caption", image_file, "--model", model), str(image_file), words)


@pytest.mark.parametrize("kind", ["grey", "rgba", "16-bit", "exif"])
def test_unusual_image_formats_work(run: Run, image_file: Path, model: Path, kind: str) -> None:
    upright = run("answer", image_file, "is it red", "--model", model).out
    image = make_image()
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned
        image.transpose(Image.Transpose.ROTATE_90).save(image_file, exif=exif)
    elif kind == "16-bit":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200).save(image_file)
    else:
        image.convert({"grey": "L", "rgba": "RGBA"}[kind]).save(image_file)
    result = run("answer", image_file, "is it red", "--model", model)
    assert result.code == 0 and result.out
    if kind in ("exif", "rgba"):
        assert result.out == upright


@pytest.mark.parametrize(("command", "words"), [("answer", "text 1 of 1 is empty"), ("match", "text 1 of 1 is empty")])
def test_an_empty_question_or_text_is_one_sentence(
    run: Run, image_file: Path, model: Path, command: str, words: str
) -> None:
    refused(run(command, image_file, " ", "--model", model), words, "give some words")


def test_a_question_longer_than_the_limit_is_cut_with_a_warning_that_counts(
    run: Run, image_file: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("answer", image_file, "is it red " * 50, "--model", model).code == 0
    assert "1 of 1 texts are longer than 16 tokens and were truncated" in caplog.text


def test_captions_longer_than_the_limit_are_cut_with_a_warning_that_counts(
    run: Run, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("pretrain", config, "inputs.text_tokens=3", "training.steps=1").code == 0
    assert "texts are longer than 3 tokens and were truncated" in caplog.text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.step=3", "did you mean 'training.steps'?"),
        ("traning.steps=3", "did you mean 'training'?"),
        ("training.learning_rate=-1", "training.learning_rate is -1"),
        ("training.workers=100000", "training.workers is 100000; it must be at most 256"),
        ("model.heads=3", "width 16 is not a multiple of heads 3"),
        ("training.steps", "not of the form section.key=value"),
        ("task=describe", "must be one of pretrain, vqa, caption"),
        ("task=vqa", "'questions' is missing"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_sentence_and_starts_nothing(
    run: Run, config: Path, tmp_path: Path, override: str, words: str
) -> None:
    refused(run("pretrain", config, override), words)
    assert not (tmp_path / "runs").exists()


def test_a_configuration_of_another_task_is_sent_to_its_command(run: Run, config: Path) -> None:
    refused(run("finetune", config), "task is 'pretrain', which is for `dimvl pretrain`")


def test_an_annotation_of_an_image_that_the_store_lacks_is_one_sentence(
    run: Run, config: Path, data: TinyData, tmp_path: Path
) -> None:
    content = json.loads(data.captions.read_text())
    content["annotations"].append({"id": 9999, "image_id": 77, "caption": "a red star"})
    data.captions.write_text(json.dumps(content))
    refused(run("pretrain", config), "lacks image '77'")
    assert latest_checkpoint(tmp_path / "runs" / "pretrain") is None


def test_an_empty_split_is_one_sentence(run: Run, config: Path, data: TinyData) -> None:
    data.captions.write_text(json.dumps({"annotations": []}))
    refused(run("pretrain", config), "no text for any image")


def test_an_empty_caption_is_one_sentence_that_names_it(run: Run, config: Path, data: TinyData) -> None:
    content = json.loads(data.captions.read_text())
    content["annotations"][2]["caption"] = "  "
    data.captions.write_text(json.dumps(content))
    refused(run("pretrain", config), f"caption {content['annotations'][2]['id']}", "is empty")


def test_a_run_of_another_configuration_is_left_unchanged(run: Run, config: Path, tmp_path: Path) -> None:
    assert run("pretrain", config).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    refused(
        run("pretrain", config, "seed=99"),
        "holds a run with another seed",
        "or remove this folder",
    )
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_a_run_does_not_overwrite_an_export(run: Run, config: Path, model: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(model, export)
    refused(run("pretrain", config, f"output={export}"), "holds an export", "give another output")
    assert sorted(path.name for path in export.iterdir()) == sorted(path.name for path in model.iterdir())
    assert all((export / name).read_bytes() == (model / name).read_bytes() for name in FILES)


def test_a_run_that_failed_to_start_leaves_its_folder_to_the_corrected_one(run: Run, config: Path) -> None:
    assert run("pretrain", config, "training.rows_per_step=1").code == 2
    assert run("pretrain", config).code == 0


def test_a_checkpoint_of_another_model_is_one_sentence(run: Run, config: Path, data: TinyData, tmp_path: Path) -> None:
    assert run("pretrain", config).code == 0
    vqa = write_config(tmp_path, data, "vqa")
    refused(run("finetune", vqa, f"initial={tmp_path / 'runs' / 'pretrain'}", "model.width=32"), "has shape")


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_one_before(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dimvl.training import checkpoint
    from dimvl.training.state import State

    write, calls = checkpoint.write_state, []

    def full_at_the_second(folder: Path, state: State) -> None:
        write(folder, state)
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full_at_the_second)
    result = run("pretrain", config)
    assert result.code == 2 and result.err.splitlines()[-1].startswith("error: cannot write")
    assert "No space left on device; free space" in result.err
    assert latest_checkpoint(tmp_path / "runs" / "pretrain").name == "step-00000002"
    assert load_model(tmp_path / "runs" / "pretrain").processor.captions
    assert run("pretrain", config).code == 0, "with space it resumes from there"
    assert latest_checkpoint(tmp_path / "runs" / "pretrain").name == "step-00000006"


@pytest.mark.parametrize("name", FILES)
def test_an_export_with_a_missing_file_is_one_sentence(
    run: Run, image_file: Path, model: Path, tmp_path: Path, name: str
) -> None:
    for file in FILES:
        if file != name:
            (tmp_path / "broken" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "broken" / file).write_bytes((model / file).read_bytes())
    refused(
        run("caption", image_file, "--model", tmp_path / "broken"),
        f"lacks {name}",
        "restore it from a copy of the folder",
    )


@pytest.mark.parametrize("damage", ["[]", '{"config": 3}', '{"config": {"seed": 0'])
def test_a_run_whose_description_is_damaged_is_one_sentence(run: Run, tmp_path: Path, damage: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(damage)
    refused(run("export", tmp_path / "run", tmp_path / "out"), f"{tmp_path / 'run' / 'run.json'} is ")
    assert not (tmp_path / "out").exists()


def test_a_device_that_does_not_exist_is_refused(run: Run, image_file: Path, model: Path) -> None:
    refused(
        run("caption", image_file, "--model", model, "--device", "tpu"), "device is 'tpu'; it must be auto, cpu or cuda"
    )


def test_a_store_of_another_extractor_is_one_sentence(run: Run, model: Path, tmp_path: Path, data: TinyData) -> None:
    store = make_store(tmp_path / "other")
    result = run("evaluate", model, "--regions", store, "--questions", data.questions)
    refused(result, "was made by fake", "trained with tiny", "extract the images again")


def test_a_folder_that_is_not_a_store_or_not_a_model_is_one_sentence(
    run: Run, tmp_path: Path, image_file: Path, data: TinyData
) -> None:
    refused(run("inspect", tmp_path), "is not a region store")
    refused(run("evaluate", tmp_path / "no", "--regions", data.regions, "--captions", data.captions), "does not exist")
    refused(run("caption", image_file, "--model", tmp_path / "no"), "does not exist")
    refused(run("export", tmp_path, tmp_path / "out"), "is not a run of dimvl")
