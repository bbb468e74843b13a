"""`dimvl caption` and `dimvl answer` on many images and with many questions, in this process."""

import json
from pathlib import Path

import pytest

import dimvl.predictor
from dimvl.predictor import Predictor
from tests.cli.calls import Result, Run
from tests.exports import make_image


@pytest.fixture
def predict(run: Run, model: Path) -> Run:
    """`dimvl ARGUMENTS --model MODEL` on the CPU."""
    return lambda *arguments: run(*arguments, "--model", model, "--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Five images in a folder, the second one truncated."""
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{number}.png" for number in range(1, 6)]
    for number, file in enumerate(files):
        make_image(number).save(file)
    files[1].write_bytes(files[1].read_bytes()[:300])
    return files


@pytest.fixture
def predictor(model: Path) -> Predictor:
    return Predictor.from_pretrained(model, "cpu")


def records(result: Result) -> list[dict]:
    """What was printed, line by line."""
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_folder_is_captioned_in_parts_and_a_truncated_image_is_named_counted_and_skipped(
    predict: Run,
    images: list[Path],
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dimvl.predictor, "AT_ONCE", 2)
    good = [file for file in images if file != images[1]]
    captions = [predictor.caption(file) for file in good]
    result = predict("caption", images[0].parent)
    assert result.out.splitlines() == [f"{file}: {text}" for file, text in zip(good, captions, strict=True)]
    assert result.code == 1 and f"skipped: image {images[1]} cannot be read" in caplog.text
    assert result.err.splitlines()[-1] == "4 images done, 1 skipped" and "5 of 5 images" in result.err
    assert records(predict("caption", images[0].parent, "--json")) == [
        {"image": str(file), "caption": text} for file, text in zip(good, captions, strict=True)
    ]
    images[1].unlink()
    assert predict("caption", images[0].parent, images[0]).code == 0


def test_an_unreadable_image_on_the_command_line_does_not_stop_the_others(
    predict: Run, images: list[Path], predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    result = predict("caption", *images[:3])
    wanted = [f"{file}: {predictor.caption(file)}" for file in (images[0], images[2])]
    assert (result.code, result.out.splitlines()) == (2, wanted)
    assert str(images[1]) in caplog.text and "2 images done, 1 skipped" in result.err


def test_results_printed_before_a_failure_are_kept(
    predict: Run, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.predictor, "AT_ONCE", 1)
    caption = Predictor.caption

    def interrupted(self: Predictor, regions: list, beams: int) -> list[str]:
        if regions[0].image_id == str(images[3]):
            raise KeyboardInterrupt
        return caption(self, regions, beams)

    monkeypatch.setattr(Predictor, "caption", interrupted)
    result = predict("caption", images[0].parent)
    assert result.code == 130 and len(result.out.splitlines()) == 2


def test_questions_on_a_folder_give_a_line_for_each_image_and_question(
    predict: Run, images: list[Path], predictor: Predictor
) -> None:
    questions = ["is it red", "is the star above a circle"]
    result = predict("answer", images[0].parent, *questions, "--top", 2)
    assert result.code == 1
    assert [(record["image"], record["question"]) for record in records(result)] == [
        (str(file), question) for file in (images[0], *images[2:]) for question in questions
    ]
    for record in records(result):
        answer = predictor.answer(record["image"], record["question"])
        assert record["answer"] == answer.text and len(record["top"]) == 2
        assert record["probability"] == pytest.approx(answer.probability, abs=1e-5)
    alone = predict("answer", images[0], *questions)
    assert alone.code == 0
    assert [record["answer"] for record in records(alone)] == [record["answer"] for record in records(result)[:2]]


def test_a_file_of_images_and_questions_is_answered_image_by_image(
    predict: Run, images: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    pairs = [("1", "is it red"), ("3", "is it red"), ("2", "is it red"), ("1", "a star")]
    lines = [{"image": f"images/{name}.png", "question": text} for name, text in pairs]
    lines[3]["question_id"] = 70
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = predict("answer", tmp_path / "questions.jsonl")
    found = [(record["image"], record["question"], record["question_id"]) for record in records(result)]
    assert result.code == 1 and found == [
        ("images/1.png", "is it red", 0),
        ("images/1.png", "a star", 70),
        ("images/3.png", "is it red", 1),
    ]
    for record in records(result):
        assert record["answer"] == predictor.answer(tmp_path / record["image"], record["question"]).text


def test_arguments_that_do_not_fit_together_are_one_sentence(predict: Run, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"image": "images/1.png", "question": "is it red"}\n')
    (tmp_path / "bad.jsonl").write_text('{"image": "images/1.png"}\n')
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "outside.jsonl").write_text('{"image": "../images/1.png", "question": "is it red"}\n')
    absolute = json.dumps({"image": str(tmp_path / "images" / "1.png"), "question": "is it red"})
    (tmp_path / "absolute.jsonl").write_text(f"{absolute}\n")
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        ((images[0],), "has no question"),
        ((tmp_path / "questions.jsonl", "is it red"), "has its own questions"),
        ((tmp_path / "bad.jsonl",), "line 1 has no field 'question'"),
        ((tmp_path / "none.jsonl",), "none.jsonl"),
        ((tmp_path / "blank.jsonl",), "blank.jsonl has no question"),
        ((tmp_path / "empty", "is it red"), "has no images"),
        ((images[0].parent, "is it red", "--explain"), "--explain needs one image and one question"),
        ((images[0], "is it red", "--folder", tmp_path), "is for the images of a .jsonl file; omit it"),
        ((tmp_path / "outside.jsonl",), "../images/1.png is outside the folder"),
        ((tmp_path / "absolute.jsonl", "--folder", tmp_path / "empty"), "images/1.png is outside the folder"),
    ]:
        result = predict("answer", *arguments)
        assert result.code == 2 and result.out == ""
        assert len(result.err.splitlines()) == 1 and words in result.err
    assert "has no images" in predict("caption", tmp_path / "empty").err
    assert predict("answer", tmp_path / "questions.jsonl").code == 0
    assert predict("answer", tmp_path / "absolute.jsonl").code == 0
    assert predict("answer", tmp_path / "empty" / ".." / "absolute.jsonl", "--folder", "/").code == 0
