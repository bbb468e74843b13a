"""The command line, called as its entry point: what each command does."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dimvl.checkpoints import latest_checkpoint
from dimvl.errors import Interrupted, NotFiniteError
from dimvl.predictor import Predictor
from dimvl.progress import progress
from dimvl.regions.store import RegionStore
from tests.cli.calls import Run, refused, write_config
from tests.exports import make_image
from tests.tiny_runs import TinyData

COMMANDS = [
    "demo",
    "scenes",
    "extract",
    "import",
    "inspect",
    "verify",
    "pretrain",
    "finetune",
    "report",
    "evaluate",
    "export",
    "caption",
    "answer",
    "match",
]


# The command line itself


def test_help_imports_nothing_heavy() -> None:
    unwanted = ["torch", "numpy", "PIL", "rich", "yaml", "tokenizers", "safetensors"]
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


def test_two_demos_in_one_folder_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    result = run("demo", "--quick", "--config", tmp_path / "mine.yaml", "--out", tmp_path / "demo")
    refused(result, "--quick and --config", "mine.yaml are different demos; remove one of them")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted("stopped at step 3", 15), 143),
        (Interrupted("stopped at step 3", 2), 130),
        (NotFiniteError("NaN"), 1),
    ],
)
def test_each_way_that_training_ends_has_its_exit_code(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    import dimvl.training.run

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(dimvl.training.run, "run_training", fail)
    result = run("pretrain", config)
    assert (result.code, result.err.strip()) == (code, f"error: {error}")


def test_ctrl_c_ends_with_exit_code_130(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dimvl.training.run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dimvl.training.run, "run_training", stop)
    assert run("pretrain", config).code == 130


def test_an_unexpected_error_keeps_its_traceback(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with progress("images") as show:
        for done in range(1, 9):
            show(done, 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 8 images" and lines[-1].startswith("8 of 8 images, ") and 2 < len(lines) < 6


# Commands


def test_scenes_are_written_with_the_requested_options(run: Run, tmp_path: Path) -> None:
    result = run("scenes", tmp_path / "scenes", "--train", 2, "--heldout", 1, "--compositional", 0, "--seed", 4)
    assert result.code == 0 and "synthetic" in result.out
    written = json.loads((tmp_path / "scenes" / "scenes.json").read_text())
    assert written["seed"] == 4 and written["splits"]["train"] == {"images": 2}
    refused(run("scenes", tmp_path / "scenes", "--train", 3), "another seed or other options")
    refused(run("scenes", tmp_path / "more", "--noise", 99), "--noise is 99.0; give a value from 0 to 40")
    refused(run("scenes", tmp_path / "more", "--image-size", 8), "--image-size is 8; give a value from 160 to 256")
    more = ("--train", 10, "--heldout", 0, "--compositional", 0, "--statements-per-image", 4, "--images-per-story", 10)
    assert run("scenes", tmp_path / "more", *more, "--phrases-per-image", 1).code == 0
    counts = {path.stem: len(path.read_text().splitlines()) for path in (tmp_path / "more").glob("*/*.jsonl")}
    assert counts == {"worlds": 10, "statements": 40, "phrases": 10, "stories": 1}
    refused(
        run("scenes", tmp_path / "none", *more, "--train", 9), "--train is 9, too few to choose images for statements"
    )


def test_extract_writes_what_it_can_read_names_the_rest_and_ends_with_exit_code_1(
    run: Run, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2, 3):
        make_image(number).save(images / f"{number}.png")
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[: len(whole) // 2])
    arguments = ("extract", images, tmp_path / "regions", "--where", model / "detector", "--device", "cpu")
    result = run(*arguments)
    assert result.code == 1
    assert "2 images done, 0 already there, 1 skipped" in result.out
    assert "2.png cannot be read" in caplog.text
    (images / "2.png").write_bytes(whole)
    result = run(*arguments)
    assert result.code == 0 and "1 image done, 2 already there, 0 skipped" in result.out
    assert len(RegionStore(tmp_path / "regions")) == 3


def test_extract_takes_the_image_ids_of_a_coco_file(run: Run, tmp_path: Path, image_file: Path, model: Path) -> None:
    listing = tmp_path / "instances.json"
    listing.write_text(json.dumps({"images": [{"id": 42, "file_name": image_file.name}]}))
    arguments = ("--coco", listing, "--where", model / "detector")
    assert run("extract", image_file.parent, tmp_path / "regions", *arguments).code == 0
    assert RegionStore(tmp_path / "regions").image_id(0) == "42"


def test_inspect_describes_a_store(run: Run, data: TinyData) -> None:
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
    assert result.code == 1 and result.out == f"{shard.name} is damaged; lost images: 6\n"


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
    low, high = scores["intervals"]["overall"]
    assert 0 <= low <= scores["overall"] <= high <= 1 and "by_answer_type / other" in scores["intervals"]
    answers = json.loads((written / "predictions.json").read_text())
    questions = json.loads(data.questions.read_text())["questions"]
    assert [record["question_id"] for record in answers] == [record["question_id"] for record in questions]
    place = ("--regions", data.regions, "--out", tmp_path / "captions", "--beams", 1, "--allow-trained-images")
    assert run("evaluate", tmp_path / "runs" / "caption", *place, "--captions", data.captions).code == 0
    captions = json.loads((tmp_path / "captions" / "predictions.json").read_text())
    assert {record["image_id"] for record in captions} == set(range(1, 7))
    assert "Java" in json.loads((tmp_path / "captions" / "scores.json").read_text())["left_out"]["official"]
    caption = ("evaluate", tmp_path / "runs" / "caption", *place)
    refused(run(*caption), "needs an annotation file to predict for; give --captions")
    refused(
        run(*caption, *files), "--questions", "does not apply to", "a model of task 'caption'", "and give --captions"
    )
    both = ("--captions", data.captions, "--annotations", data.annotations)
    refused(run(*caption, *both), "--annotations", "a model of task 'caption'")
    worlds = ("evaluate", tmp_path / "runs" / "vqa", *place, *files, "--worlds", data.captions)
    refused(run(*worlds), "--worlds", "a model of task 'vqa'")
    refused(run(*worlds[:-2], "foo=3"), "foo=3 does not apply to", "remove it")
    for other in (tmp_path / "runs" / "vqa", data.regions, data.captions.parent):
        before = sorted(other.iterdir())
        refused(run(*worlds[:-2], "--out", other), "is not an evaluation; give another folder as --out")
        assert sorted(other.iterdir()) == before
    out = ("--out", data.captions / "here")
    refused(run("evaluate", tmp_path / "runs" / "vqa", *place, *files, *out), "cannot write", "is not a folder")


def test_predictions_are_printed_as_text_or_as_json(run: Run, image_file: Path, model: Path) -> None:
    predictor = Predictor.from_pretrained(model, "cpu")
    options = ("--model", model, "--device", "cpu")
    text = predictor.caption(image_file)
    assert run("caption", image_file, *options).out == f"{text}\n"
    assert run("caption", image_file, image_file, *options).out == f"{text}\n", "an image named twice is one"
    assert json.loads(run("caption", image_file, *options, "--json").out) == {"image": str(image_file), "caption": text}
    answer = predictor.answer(image_file, "is it red")
    assert run("answer", image_file, "is it red", *options).out == f"{answer.text}\n"
    record = json.loads(run("answer", image_file, "is it red", *options, "--json", "--explain", "--top", 2).out)
    assert record["answer"] == answer.text and record["probability"] == pytest.approx(answer.probability)
    assert len(record["top"]) == 2
    assert {"box", "name", "attributes", "score", "probability_drop", "image"} == set(record["regions"][0])
    plain = run("answer", image_file, "is it red", *options, "--explain").out
    assert "probability drop when the region is removed:" in plain
    assert len(plain.splitlines()) == 3 + len(record["regions"])
    probability = predictor.match(image_file, "a star")
    assert json.loads(run("match", image_file, "a star", *options, "--json").out)["probability"] == pytest.approx(
        probability
    )
    assert run("match", image_file, "a star", *options).out == f"{probability:.3f}\n"


def test_export_writes_scores_into_the_model_card(run: Run, tmp_path: Path, model: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"overall": 0.625}))
    arguments = ("export", model.parent / "run", tmp_path / "out", "--where", model / "detector")
    assert run(*arguments, "--scores", scores).code == 0
    assert "| overall | 0.6250 |" in (tmp_path / "out" / "README.md").read_text()
    scores.write_text("[1]")
    refused(run(*arguments, "--scores", scores), "is not a JSON object; give scores by name")
