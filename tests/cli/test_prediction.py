"""`dimvl caption`, `answer` and `match` on images and on stored regions, in this process."""

import ast
import json
import re
from pathlib import Path

import pytest

import dimvl.cli
import dimvl.image_inputs
import dimvl.predictor_base
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.extract import extract
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.trained_model import load_model
from tests.cli.calls import Result, Run, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run


@pytest.fixture
def predict(run: Run, model: Path) -> Run:
    """`dimvl ARGUMENTS --model MODEL` on the CPU."""
    return lambda *arguments: run(arguments[0], "--model", model, "--device", "cpu", *arguments[1:])


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
    monkeypatch.setattr(dimvl.image_inputs, "AT_ONCE", 2)
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


@pytest.mark.parametrize("command", [("caption",), ("caption", "--together"), ("answer",), ("match",)])
def test_what_a_folder_has_beside_images_is_told_and_folders_of_images_give_exit_code_1(
    command: tuple[str, ...], predict: Run, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    make_image(1).save(tmp_path / "photos" / "1.png")
    (tmp_path / "photos" / "notes.txt").touch()
    arguments = (*command, tmp_path / "photos", *(["is it red"] if command[0] != "caption" else []))
    result = predict(*arguments)
    assert result.code == 0 and result.err.splitlines()[-1] == "passed over: 1 not images"
    (tmp_path / "photos" / "more").mkdir()
    make_image(2).save(tmp_path / "photos" / "more" / "2.png")
    result = predict(*arguments)
    assert result.code == 1 and len(result.out.splitlines()) == 1
    assert result.err.endswith("passed over: 1 not images, folders with images (more; give them one by one)\n")


def test_a_model_that_cannot_do_what_is_asked_is_refused_before_an_image_is_read(
    run: Run, images: list[Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.predictor_base, "abilities_of", lambda processor: {"sing": None})
    for command in (("caption",), ("answer", "is it red"), ("match", "is it red")):
        result = run(command[0], images[0].parent, *command[1:], "--model", model)
        refused(result, f"cannot {command[0]}, but it can sing")
        assert "image" not in result.err


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
    monkeypatch.setattr(dimvl.image_inputs, "AT_ONCE", 1)
    caption = Predictor.caption

    def interrupted(self: Predictor, inputs: list) -> list[str]:
        if inputs[0][0].image_id == str(images[3]):
            raise KeyboardInterrupt
        return caption(self, inputs)

    monkeypatch.setattr(Predictor, "caption", interrupted)
    result = predict("caption", images[0].parent)
    assert result.code == 130 and len(result.out.splitlines()) == 2


def test_questions_on_a_folder_give_a_line_for_each_image_and_question(
    predict: Run, images: list[Path], predictor: Predictor
) -> None:
    questions = ["is it red", "is the star above a circle"]
    result = predict("answer", images[0].parent, *questions, "--top", 2)
    assert result.code == 1
    assert result.err.splitlines()[-1] == "4 images done, 1 skipped, 2 questions left out"
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
        ((images[0], images[2], "is it red"), "is a file or a folder, not a question"),
        ((images[0], "is it red", " "), "text 2 of 2 is empty"),
        ((tmp_path / "questions.jsonl", "is it red"), "has its own questions"),
        ((tmp_path / "bad.jsonl",), "line 1 has no field 'question'"),
        ((tmp_path / "none.jsonl",), "none.jsonl"),
        ((tmp_path / "blank.jsonl",), "blank.jsonl has no question"),
        ((tmp_path / "empty", "is it red"), "has no images"),
        ((images[0].parent, "is it red", "--explain"), "--explain needs one image and one question"),
        ((images[0], "is it red", "--folder", tmp_path), "is for the images of a .jsonl file; omit it"),
        (
            (tmp_path / "questions.jsonl", "--regions", tmp_path, "--folder", tmp_path),
            "is for files, and --regions reads a region store; omit one of them",
        ),
        ((tmp_path / "outside.jsonl",), "../images/1.png is outside the folder"),
        ((tmp_path / "absolute.jsonl", "--folder", tmp_path / "empty"), "images/1.png is outside the folder"),
    ]:
        result = predict("answer", *arguments)
        assert result.code == 2 and result.out == ""
        assert len(result.err.splitlines()) == 1 and words in result.err
    refused(predict("caption", tmp_path / "empty"), "has no images")
    refused(predict("caption"), "no images are given; give image files or folders, or a region store as --regions")
    refused(predict("match", images[0], images[2]), "is a file or a folder, not a text")
    refused(predict("match", images[0], "--texts", tmp_path / "blank.jsonl"), "has no text; give one per line")
    refused(predict("match", images[0], "--images", "1", "--text", "a star"), "give --regions too")
    assert predict("answer", tmp_path / "questions.jsonl").code == 0
    assert predict("answer", tmp_path / "absolute.jsonl").code == 0
    assert predict("answer", tmp_path / "empty" / ".." / "absolute.jsonl", "--folder", "/").code == 0


def test_texts_are_matched_with_every_image_of_a_folder(
    predict: Run, images: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a star\n\n a red circle \n")
    result = predict("match", images[0].parent, "--texts", tmp_path / "texts.txt", "--text", "two")
    pairs = [(str(file), text) for file in (images[0], *images[2:]) for text in ("two", "a star", "a red circle")]
    assert [(record["image"], record["text"]) for record in records(result)] == pairs
    for record, pair in zip(records(result), pairs, strict=True):
        assert record["probability"] == pytest.approx(predictor.match(*pair), abs=1e-5)
    assert result.code == 1
    assert result.err.splitlines()[-1] == "4 images done, 1 skipped, 3 pairs of image and text left out"
    some = predict("match", *images[:3], "a star")
    assert some.code == 2
    assert some.out.splitlines() == [
        f"{file}: {predictor.match(file, 'a star'):.3f}" for file in (images[0], images[2])
    ]


# Stored regions


@pytest.fixture
def stored(predict: Run, images: list[Path], model: Path, tmp_path: Path) -> Run:
    """Do what `predict` does with a region store of the images 1, 3, 4 and 5, and with an export without a detector."""
    with RegionStoreWriter(tmp_path / "store", load_detector(model / "detector").extractor) as writer:
        extract([(file.stem, file) for file in images], load_detector(model / "detector"), writer)
    export(model.parent / "run", tmp_path / "bare", "none")
    return lambda *arguments: predict(*arguments, "--regions", tmp_path / "store", "--model", tmp_path / "bare")


def test_stored_regions_give_what_their_images_give(
    stored: Run, images: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    file = {name: images[int(name) - 1] for name in "1345"}
    assert stored("caption").out.splitlines() == [f"{name}: {predictor.caption(file[name])}" for name in "1345"]
    some = stored("caption", "--images", "4", "--images", "3", "--json")
    assert records(some) == [{"image": name, "caption": predictor.caption(file[name])} for name in "43"]
    assert stored("caption", "--images", "4").out == f"{predictor.caption(file['4'])}\n"
    answered = stored("answer", "is it red", "a star")
    assert [(one["image"], one["question"]) for one in records(answered)] == [
        (name, question) for name in "1345" for question in ("is it red", "a star")
    ]
    for one in records(answered):
        assert one["answer"] == predictor.answer(file[one["image"]], one["question"]).text
    explained = json.loads(stored("answer", "is it red", "--images", "5", "--explain", "--json").out)["regions"]
    drops = [region.probability_drop for region in predictor.explain(file["5"], "is it red").regions]
    assert [region["probability_drop"] for region in explained] == pytest.approx(drops, abs=1e-3)
    together = stored("match", "a star", "--images", "5", "--images", "1", "--together")
    assert together.out == f"{predictor.match((file['5'], file['1']), 'a star'):.3f}\n"
    lines = [{"image": "3", "question": "is it red"}, {"images": ["1", "4"], "question": "a star"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {one["question"]: one for one in records(stored("answer", tmp_path / "asked.jsonl"))}
    assert found["is it red"]["answer"] == predictor.answer(file["3"], "is it red").text
    both = predictor.answer((file["1"], file["4"]), "a star")
    assert found["a star"]["probability"] == pytest.approx(both.probability, abs=1e-3)


def test_what_is_not_in_a_store_is_refused_before_anything_is_predicted(
    stored: Run, images: list[Path], tmp_path: Path
) -> None:
    lacks = "lacks image '2' and 1 others; name images as the store does, such as '1'"
    refused(stored("caption", "--images", "1", "--images", "2", "--images", "7.png"), lacks)
    lines = [{"images": ["2", "1"], "question": "a star"}, {"image": "images/1.png", "question": "a star"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(stored("answer", tmp_path / "asked.jsonl"), lacks)
    refused(stored("answer", tmp_path / "asked.jsonl", "--images", "1"), "names its own images; omit --images")
    refused(stored("answer", "1", "is it red"), "'1' is an image of the region store", "give it as --images 1")
    refused(
        stored("match", images[0], "a star"), "and --regions both give images; name images of the store by --images"
    )
    refused(stored("answer"), "there is no question")
    refused(stored("match"), "no text is given; give it last, or by --text or --texts")


def test_regions_of_another_extractor_are_refused(predict: Run, images: list[Path], tmp_path: Path) -> None:
    make_detector(seed=5).save(tmp_path / "other")
    detector = load_detector(tmp_path / "other")
    with RegionStoreWriter(tmp_path / "store", detector.extractor) as writer:
        extract([("1", images[0])], detector, writer)
    refused(predict("caption", "--regions", tmp_path / "store"), "the model was trained with tiny")


# What is printed


def test_a_model_of_synthetic_scenes_says_so_first_and_others_say_nothing(
    predict: Run, images: list[Path], model: Path, tmp_path: Path
) -> None:
    synthetic = export(write_run(tmp_path / "run", load_model(model)), tmp_path / "synthetic", model / "detector")
    for arguments in (
        ("caption", images[0]),
        ("answer", images[0], "is it red"),
        ("match", images[0].parent, "a star"),
    ):
        with_note = predict(*arguments, "--model", synthetic)
        assert with_note.err.startswith("this model knows synthetic scenes only; what it says about other images")
        without = predict(*arguments)
        assert without.out == with_note.out and "synthetic" not in without.err
        assert len(with_note.err.splitlines()) == len(without.err.splitlines()) + 1


def test_statements_answer_without_an_answer_head_and_questions_without_a_rule_are_counted(
    predict: Run, images: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("statements: [{questions: ['is it {what}?'], statement: 'a {what} star'}]")
    given = ("--statements", rules)
    wanted = predictor.answer(images[0], "is it red", statements=rules)
    assert predict("answer", images[0], "is it red", *given).out == f"{wanted.text}\n"
    assert predict("answer", images[0], "is it red", *given, "--top", 2).out.splitlines() == [
        f"{text} ({probability:.3f})" for text, probability in wanted.top
    ]
    lines = [{"image": "images/1.png", "question": question} for question in ("Is it red?", "why is it red?")]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = predict("answer", tmp_path / "asked.jsonl", *given)
    assert [one["answer"] for one in records(result)] == [wanted.text, ""] and result.code == 1
    assert f"no rule of {rules} covers 1 question, such as 'why is it red?'; the answer is empty" in result.err
    assert predict("answer", tmp_path / "asked.jsonl").code == 0
    refused(predict("answer", images[0], "why?", *given), "covers 'why?'; add one, or ask in the words of a rule")
    refused(predict("answer", images[0], "is it red", "--explain", *given), "omit it, or --statements")
    rules.write_text("statements: [{questions: ['is it {what}?'], statement: 'a {kind} star'}]")
    refused(predict("answer", images[0], "is it red", *given), "has the blank {kind}", "which a question of its rule")


def test_times_that_a_model_does_not_use_are_told_once_and_ignored(
    predict: Run, images: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    line = {"image": "images/1.png", "question": "is it red", "times": [7]}
    (tmp_path / "asked.jsonl").write_text(json.dumps(line) + "\n")
    result = predict("answer", tmp_path / "asked.jsonl")
    assert result.code == 0 and "the times of 1 texts are ignored; train with inputs.times=true" in result.err
    assert records(result)[0]["answer"] == predictor.answer(images[0], "is it red").text


def test_what_a_terminal_obeys_is_printed_as_escapes_and_json_is_exact(
    predict: Run, images: list[Path], model: Path, tmp_path: Path
) -> None:
    answers = ("yes\x1b[2J", "no\nyes", "red\u202e", "blue\r", "\x9b2")
    extractor = load_detector(model / "detector").extractor
    run = write_run(
        tmp_path / "run", make_trained(all_abilities(extractor, answers=answers)), description="photographs"
    )
    hostile = ("--model", export(run, tmp_path / "hostile", model / "detector"))
    name = tmp_path / "forged\nred\x1b[31m.png"
    images[0].rename(name)
    plain = predict("answer", name, "is it red", "--top", 5, "--explain", *hostile).out
    exact = json.loads(predict("answer", name, "is it red", "--top", 5, "--json", *hostile).out)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", plain) and r"yes\x1b[2J" in plain
    assert exact["image"] == str(name) and {text for text, _ in exact["top"]} == {*answers}
    lines = predict("caption", name, images[2], *hostile).out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{tmp_path}/forged\\nred\\x1b[31m.png: ")


def test_commands_print_text_through_one_function_and_anything_else_as_json() -> None:
    for path in Path(dimvl.cli.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        printers = [node for node in functions if node.name in ("print_text", "_fail", "emit")]
        allowed = {id(call) for node in printers for call in ast.walk(node)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "print" and id(call) not in allowed:
                assert ast.unparse(call.args[0]).startswith("json.dumps("), f"{path.name}, line {call.lineno}"
