"""`dimvl caption` and `dimvl answer` on many pictures and with many questions, in this process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import dimvl.cli
import dimvl.predictor
from dimvl.export import export
from dimvl.predictor import Predictor
from tests.exports import all_abilities, make_detector, make_picture, make_trained, write_run


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model: Path) -> Run:
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["dimvl", *map(str, arguments), "--model", str(model), "--device", "cpu"])
        code = 0
        try:
            dimvl.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(place / "run", make_trained(all_abilities(detector.extractor)))
    return export(run, place / "export", place / "detector")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Five pictures in a folder, the second one torn."""
    (tmp_path / "pictures").mkdir()
    files = [tmp_path / "pictures" / f"{number}.png" for number in range(1, 6)]
    for number, file in enumerate(files):
        make_picture(number).save(file)
    files[1].write_bytes(files[1].read_bytes()[:300])
    return files


@pytest.fixture
def predictor(model: Path) -> Predictor:
    return Predictor.from_pretrained(model, "cpu")


def test_a_folder_is_captioned_a_few_pictures_at_a_time_and_a_torn_one_is_named_counted_and_skipped(
    run: Run,
    pictures: list[Path],
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dimvl.predictor, "AT_ONCE", 2)
    good = [file for file in pictures if file != pictures[1]]
    captions = [predictor.caption(file) for file in good]
    result = run("caption", pictures[0].parent)
    assert result.out.splitlines() == [f"{file}: {text}" for file, text in zip(good, captions, strict=True)]
    assert result.code == 1 and f"skipped: picture {pictures[1]} cannot be read" in caplog.text
    assert result.err.splitlines()[-1] == "4 pictures done, 1 skipped" and "5 of 5 pictures" in result.err
    assert run("caption", pictures[0].parent, "--json").records == [
        {"image": str(file), "caption": text} for file, text in zip(good, captions, strict=True)
    ]
    pictures[1].unlink()
    assert run("caption", pictures[0].parent, pictures[0]).code == 0


def test_a_picture_that_was_given_itself_and_cannot_be_read_does_not_keep_the_others_from_being_captioned(
    run: Run, pictures: list[Path], predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    result = run("caption", *pictures[:3])
    wanted = [f"{file}: {predictor.caption(file)}" for file in (pictures[0], pictures[2])]
    assert (result.code, result.out.splitlines()) == (2, wanted)
    assert str(pictures[1]) in caplog.text and "2 pictures done, 1 skipped" in result.err


def test_what_was_written_before_something_breaks_is_kept(
    run: Run, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.predictor, "AT_ONCE", 1)
    caption = Predictor.caption

    def interrupted(self: Predictor, images: list, beams: int) -> list[str]:
        if images[0].image_id == str(pictures[3]):
            raise KeyboardInterrupt
        return caption(self, images, beams)

    monkeypatch.setattr(Predictor, "caption", interrupted)
    result = run("caption", pictures[0].parent)
    assert result.code == 130 and len(result.out.splitlines()) == 2


def test_questions_on_a_folder_give_a_line_for_each_picture_and_question(
    run: Run, pictures: list[Path], predictor: Predictor
) -> None:
    questions = ["is it red", "is the star above a circle"]
    result = run("answer", pictures[0].parent, *questions, "--top", 2)
    assert result.code == 1
    assert [(record["image"], record["question"]) for record in result.records] == [
        (str(file), question) for file in (pictures[0], *pictures[2:]) for question in questions
    ]
    for record in result.records:
        answer = predictor.answer(record["image"], record["question"])
        assert record["answer"] == answer.text and len(record["top"]) == 2
        assert record["probability"] == pytest.approx(answer.probability, abs=1e-5)
    alone = run("answer", pictures[0], *questions)
    assert alone.code == 0
    assert [record["answer"] for record in alone.records] == [record["answer"] for record in result.records[:2]]


def test_a_file_of_pictures_and_questions_is_answered_picture_by_picture(
    run: Run, pictures: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    asked = [("1", "is it red"), ("3", "is it red"), ("2", "is it red"), ("1", "a star")]
    lines = [{"image": f"pictures/{name}.png", "question": text} for name, text in asked]
    lines[3]["question_id"] = 70
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("answer", tmp_path / "asked.jsonl")
    told = [(record["image"], record["question"], record["question_id"]) for record in result.records]
    assert result.code == 1 and told == [
        ("pictures/1.png", "is it red", 0),
        ("pictures/1.png", "a star", 70),
        ("pictures/3.png", "is it red", 1),
    ]
    for record in result.records:
        assert record["answer"] == predictor.answer(tmp_path / record["image"], record["question"]).text


def test_what_does_not_fit_together_is_one_sentence(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"image": "pictures/1.png", "question": "is it red"}\n')
    (tmp_path / "bad.jsonl").write_text('{"image": "pictures/1.png"}\n')
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        ((pictures[0],), "there is no question on"),
        ((tmp_path / "asked.jsonl", "is it red"), "has its own questions"),
        ((tmp_path / "bad.jsonl",), "line 1 has no field 'question'"),
        ((tmp_path / "none.jsonl",), "none.jsonl"),
        ((tmp_path / "empty", "is it red"), "has no pictures"),
        ((pictures[0].parent, "is it red", "--explain"), "--explain takes one picture and one question"),
    ]:
        result = run("answer", *arguments)
        assert result.code == 2 and result.out == ""
        assert len(result.err.splitlines()) == 1 and words in result.err
    assert "has no pictures" in run("caption", tmp_path / "empty").err
    assert run("answer", tmp_path / "asked.jsonl").code == 0
