"""The command line, called as its entry point; what bad input does is tested here from end to end."""

import errno
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

import dimvl.cli
from dimvl.errors import Interrupted, NotFiniteError
from dimvl.export import FILES, export
from dimvl.predictor import Predictor
from dimvl.pretrained import latest_checkpoint, load_trained
from dimvl.progress import progress
from dimvl.regions.store import RegionStore
from tests.exports import all_abilities, make_detector, make_picture, make_trained, write_run
from tests.factories import make_store
from tests.tiny_runs import TinyData, make_config, make_data

COMMANDS = [
    "demo",
    "scenes",
    "extract",
    "import",
    "inspect",
    "verify",
    "pretrain",
    "finetune",
    "evaluate",
    "export",
    "caption",
    "answer",
    "match",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`dimvl ARGUMENTS` in this process; descriptors are captured, since torch and others write past Python."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["dimvl", *map(str, arguments)])
        code = 0
        try:
            dimvl.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.getLogger("dimvl").setLevel(logging.NOTSET)
        return Result(code, *capfd.readouterr())

    return call


def refused(result: Result, *words: str) -> None:
    """Check for one sentence on stderr, nothing on stdout and exit code 2."""
    lines = result.err.strip().splitlines()
    assert result.code == 2, result
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert result.out == ""
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model that answers, captions and matches."""
    place = tmp_path_factory.mktemp("model")
    detector = make_detector()
    detector.save(place / "detector")
    return export(
        write_run(place / "run", make_trained(all_abilities(detector.extractor))), place / "export", place / "detector"
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    make_picture().save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def data(tmp_path: Path) -> TinyData:
    return make_data(tmp_path / "data")


@pytest.fixture
def config(tmp_path: Path, data: TinyData) -> Path:
    """A pretraining of six steps, saved every second one."""
    return write_config(tmp_path, data, "pretrain")


def write_config(tmp_path: Path, data: TinyData, task: str) -> Path:
    made = make_config(data, tmp_path / "runs" / task, task, training={"save_every": 2})
    path = tmp_path / f"{task}.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    return path


# The command line itself


def test_help_imports_nothing_heavy() -> None:
    unwanted = ["torch", "numpy", "PIL", "pydantic", "rich", "yaml", "tokenizers", "safetensors"]
    code = (
        "import sys; sys.argv = ['dimvl', '--help']\n"
        "from dimvl.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print([name for name in {unwanted} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_whose_options_exist(run: Run, command: str) -> None:
    result = run(command, "--help")
    example = result.out.split("Example: dimvl ")[1].split("\n\n")[0].split()
    assert result.code == 0 and example[0] == command
    for word in example:
        if word.startswith("--"):
            assert word in result.out.split("Options:")[1]


@pytest.mark.parametrize("arguments", [["captoin"], ["caption"], ["scenes", "out", "--seed", "x"], ["inspect", "--no"]])
def test_a_wrong_call_ends_with_exit_code_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2 and "Error" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted("stopped at step 3", 15), 143),
        (Interrupted("stopped at step 3", 2), 130),
        (NotFiniteError("NaN"), 1),
    ],
)
def test_ends_of_training_have_their_own_exit_codes(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    import dimvl.training.run

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(dimvl.training.run, "run_training", fail)
    result = run("pretrain", config)
    assert (result.code, result.err.strip()) == (code, f"error: {error}")


def test_a_key_press_to_stop_ends_with_exit_code_130(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dimvl.training.run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dimvl.training.run, "run_training", stop)
    assert run("pretrain", config).code == 130


def test_what_nobody_expected_keeps_its_traceback(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dimvl.training.run

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(dimvl.training.run, "run_training", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("pretrain", config)


def test_progress_without_a_terminal_is_a_line_every_few_seconds_and_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress("pictures") as show:
        for done in range(1, 9):
            show(done, 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 8 pictures" and lines[-1].startswith("8 of 8 pictures, ") and 2 < len(lines) < 6


# Commands


def test_scenes_are_written_as_asked(run: Run, tmp_path: Path) -> None:
    result = run("scenes", tmp_path / "scenes", "--train", 2, "--heldout", 1, "--compositional", 0, "--seed", 4)
    assert result.code == 0 and "synthetic" in result.out
    written = json.loads((tmp_path / "scenes" / "scenes.json").read_text())
    assert written["seed"] == 4 and written["splits"]["train"] == {"images": 2}
    refused(run("scenes", tmp_path / "scenes", "--train", 3), "another seed or other options")
    refused(run("scenes", tmp_path / "more", "--noise", 99), "noise is 99")


def test_extract_writes_what_it_can_read_names_the_rest_and_ends_with_exit_code_1(
    run: Run, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in (1, 2, 3):
        make_picture(number).save(pictures / f"{number}.png")
    whole = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[: len(whole) // 2])
    arguments = ("extract", pictures, tmp_path / "regions", "--detector", model / "detector", "--device", "cpu")
    result = run(*arguments)
    assert result.code == 1
    assert "2 pictures done, 0 already there, 1 skipped" in result.out
    assert "2.png cannot be read" in caplog.text
    (pictures / "2.png").write_bytes(whole)
    result = run(*arguments)
    assert result.code == 0 and "1 pictures done, 2 already there, 0 skipped" in result.out
    assert len(RegionStore(tmp_path / "regions")) == 3


def test_extract_takes_the_image_ids_of_a_coco_file(run: Run, tmp_path: Path, picture: Path, model: Path) -> None:
    listing = tmp_path / "instances.json"
    listing.write_text(json.dumps({"images": [{"id": 42, "file_name": picture.name}]}))
    arguments = ("--coco", listing, "--detector", model / "detector")
    assert run("extract", picture.parent, tmp_path / "regions", *arguments).code == 0
    assert RegionStore(tmp_path / "regions").image_id(0) == "42"


def test_inspect_tells_what_a_store_holds(run: Run, data: TinyData) -> None:
    facts = json.loads(run("inspect", data.regions, "--json").out)
    store = RegionStore(data.regions)
    assert facts["images"] == len(store) and facts["regions"] == store.folders[0].manifest.num_regions
    assert facts["extractor"] == "fake" and facts["classes"] == ["circle", "square", "star"]
    assert "classes: circle, square, star" in run("inspect", data.regions).out


def test_verify_names_the_images_of_a_damaged_shard_and_ends_with_exit_code_1(run: Run, data: TinyData) -> None:
    assert run("verify", data.regions).code == 0
    shard = next(data.regions.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = run("verify", data.regions)
    assert result.code == 1 and result.out == f"{shard.name} is damaged; it costs the images 6\n"


def test_training_shows_lines_takes_overrides_and_ends_with_a_checkpoint(
    run: Run, config: Path, tmp_path: Path
) -> None:
    result = run("pretrain", config, "training.steps=3", f"output={tmp_path / 'other'}")
    assert result.code == 0 and str(tmp_path / "other") in result.out
    assert "step 1/3" in result.err and "step 3/3" in result.err and "masked_lm=" in result.err
    assert latest_checkpoint(tmp_path / "other").name == "step-00000003"


def test_evaluate_writes_the_official_formats_and_the_scores(
    run: Run, tmp_path: Path, data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no Java, whose start would take most of the time
    vqa, captioning = write_config(tmp_path, data, "vqa"), write_config(tmp_path, data, "caption")
    assert run("finetune", vqa).code == run("finetune", captioning).code == 0
    files = ("--questions", data.questions, "--annotations", data.annotations, "--allow-trained-images")
    result = run("evaluate", tmp_path / "runs" / "vqa", "--regions", data.regions, *files)
    written = tmp_path / "runs" / "vqa" / "evaluation"
    scores = json.loads((written / "scores.json").read_text())
    assert result.code == 0 and json.loads(result.out) == scores
    assert scores["count"] == 12 and 0 <= scores["overall"] <= 1
    answers = json.loads((written / "predictions.json").read_text())
    asked = json.loads(data.questions.read_text())["questions"]
    assert [record["question_id"] for record in answers] == [record["question_id"] for record in asked]
    place = ("--regions", data.regions, "--out", tmp_path / "captions", "--beams", 1, "--allow-trained-images")
    assert run("evaluate", tmp_path / "runs" / "caption", *place, "--captions", data.captions).code == 0
    captions = json.loads((tmp_path / "captions" / "predictions.json").read_text())
    assert {record["image_id"] for record in captions} == set(range(1, 7))
    assert "Java" in json.loads((tmp_path / "captions" / "scores.json").read_text())["left_out"]["official"]
    refused(run("evaluate", tmp_path / "runs" / "caption", *place), "either --questions or --captions")
    refused(run("evaluate", tmp_path / "runs" / "caption", *place, *files), "cannot answer, it can caption")


def test_predictions_come_plain_for_people_and_as_json_for_machines(run: Run, picture: Path, model: Path) -> None:
    predictor = Predictor.from_pretrained(model, "cpu")
    options = ("--model", model, "--device", "cpu")
    text = predictor.caption(picture)
    assert run("caption", picture, *options).out == f"{text}\n"
    assert run("caption", picture, picture, *options).out == f"{picture}: {text}\n" * 2
    assert json.loads(run("caption", picture, *options, "--json").out) == {"image": str(picture), "caption": text}
    answer = predictor.answer(picture, "is it red")
    assert run("answer", picture, "is it red", *options).out == f"{answer.text}\n"
    record = json.loads(run("answer", picture, "is it red", *options, "--json", "--explain", "--top", 2).out)
    assert record["answer"] == answer.text and record["probability"] == pytest.approx(answer.probability)
    assert len(record["top"]) == 2
    assert {"box", "name", "attributes", "score", "probability_drop"} == set(record["regions"][0])
    plain = run("answer", picture, "is it red", *options, "--explain").out
    assert "probability drop when the region is removed:" in plain
    assert len(plain.splitlines()) == 3 + len(record["regions"])
    probability = predictor.match(picture, "a star")
    assert json.loads(run("match", picture, "a star", *options, "--json").out)["probability"] == pytest.approx(
        probability
    )
    assert run("match", picture, "a star", *options).out == f"{probability:.3f}\n"


def test_export_takes_scores_into_the_model_card(run: Run, tmp_path: Path, model: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"overall": 0.625}))
    arguments = ("export", model.parent / "run", tmp_path / "out", "--detector", model / "detector")
    assert run(*arguments, "--scores", scores).code == 0
    assert "| overall | 0.6250 |" in (tmp_path / "out" / "README.md").read_text()
    scores.write_text("[1]")
    refused(run(*arguments, "--scores", scores), "must hold scores by name")


# Bad input


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def text_named_png(path: Path) -> None:
    path.write_text("I am not a picture")


def bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "does not exist"),
        (truncated, "cannot be read"),
        (text_named_png, "is not a picture"),
        (bomb, "has more than 67,108,864 pixels"),
    ],
)
def test_a_picture_that_cannot_be_used_is_one_sentence(
    run: Run, picture: Path, model: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(picture)
    refused(run("caption", picture, "--model", model), str(picture), words)


@pytest.mark.parametrize("kind", ["grey", "rgba", "16-bit", "exif"])
def test_an_unusual_picture_just_works(run: Run, picture: Path, model: Path, kind: str) -> None:
    upright = run("answer", picture, "is it red", "--model", model).out
    image = make_picture()
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned
        image.transpose(Image.Transpose.ROTATE_90).save(picture, exif=exif)
    elif kind == "16-bit":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200).save(picture)
    else:
        image.convert({"grey": "L", "rgba": "RGBA"}[kind]).save(picture)
    result = run("answer", picture, "is it red", "--model", model)
    assert result.code == 0 and result.out
    if kind in ("exif", "rgba"):
        assert result.out == upright


@pytest.mark.parametrize(("command", "words"), [("answer", "text 1 of 1 is empty"), ("match", "text 1 of 1 is empty")])
def test_an_empty_question_or_text_is_one_sentence(
    run: Run, picture: Path, model: Path, command: str, words: str
) -> None:
    refused(run(command, picture, " ", "--model", model), words, "give some words")


def test_a_question_longer_than_the_limit_is_cut_with_a_warning_that_counts(
    run: Run, picture: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("answer", picture, "is it red " * 50, "--model", model).code == 0
    assert "1 of 1 texts are longer than 16 tokens and were cut" in caplog.text


def test_captions_longer_than_the_limit_are_cut_with_a_warning_that_counts(
    run: Run, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("pretrain", config, "inputs.text_tokens=3", "training.steps=1").code == 0
    assert "texts are longer than 3 tokens and were cut" in caplog.text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.step=3", "did you mean 'training.steps'?"),
        ("traning.steps=3", "did you mean 'training'?"),
        ("training.learning_rate=-1", "training.learning_rate is -1"),
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


def test_a_run_of_another_configuration_is_left_as_it_is(run: Run, config: Path, tmp_path: Path) -> None:
    assert run("pretrain", config).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    refused(run("pretrain", config, "seed=99"), "holds a run with another seed", "give another output folder")
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


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
    assert load_trained(tmp_path / "runs" / "pretrain").processor.captions
    assert run("pretrain", config).code == 0, "with space it goes on from there"
    assert latest_checkpoint(tmp_path / "runs" / "pretrain").name == "step-00000006"


@pytest.mark.parametrize("name", FILES)
def test_an_export_with_a_missing_file_is_one_sentence(
    run: Run, picture: Path, model: Path, tmp_path: Path, name: str
) -> None:
    for file in FILES:
        if file != name:
            (tmp_path / "broken" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "broken" / file).write_bytes((model / file).read_bytes())
    refused(run("caption", picture, "--model", tmp_path / "broken"), f"lacks {name}", "export the run again")


@pytest.mark.parametrize("damage", ["[]", '{"config": 3}', '{"config": {"seed": 0'])
def test_a_run_whose_description_is_damaged_is_one_sentence(run: Run, tmp_path: Path, damage: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(damage)
    refused(run("export", tmp_path / "run", tmp_path / "out"), f"{tmp_path / 'run' / 'run.json'} is ")
    assert not (tmp_path / "out").exists()


def test_a_device_that_does_not_exist_is_refused(run: Run, picture: Path, model: Path) -> None:
    refused(
        run("caption", picture, "--model", model, "--device", "tpu"), "device is 'tpu'; it must be auto, cpu or cuda"
    )


def test_a_store_of_another_extractor_is_one_sentence(run: Run, model: Path, tmp_path: Path, data: TinyData) -> None:
    store = make_store(tmp_path / "other")
    result = run("evaluate", model, "--regions", store, "--questions", data.questions)
    refused(result, "was made by fake", "trained with tiny", "extract the pictures again")


def test_a_folder_that_is_no_store_and_one_that_is_no_model_are_one_sentence(
    run: Run, tmp_path: Path, picture: Path, data: TinyData
) -> None:
    refused(run("inspect", tmp_path), "is not a region store")
    refused(run("evaluate", tmp_path / "no", "--regions", data.regions, "--captions", data.captions), "does not exist")
    refused(run("caption", picture, "--model", tmp_path / "no"), "does not exist")
    refused(run("export", tmp_path, tmp_path / "out"), "is not a run of dimvl")
