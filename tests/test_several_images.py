"""Texts about several images through the command line and the predictor."""

import json
from dataclasses import replace
from functools import partial

import pytest
import yaml

import dimvl.image_inputs
from dimvl.data.prefixes import join_images, make_prefix
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.tasks.answering.prediction import answer_probabilities
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.tiny_runs import make_config, make_data, make_several

INPUTS = {"max_images": 5, "times": True}
QUESTION = "is the star above a circle"


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setenv("PATH", "")  # no Java
    return partial(call, monkeypatch, capfd)


def write(folder, data, task, **changes):
    """Write a configuration file of a run with up to 5 images and times."""
    config = make_config(data, folder / task, task, **{"inputs": INPUTS, **changes})
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- runs


def test_runs_on_several_images_are_trained_evaluated_scored_and_planned(run, tmp_path):
    data = make_several(make_data(tmp_path / "data", 12), 12, times=True)
    assert run("pretrain", write(tmp_path, data, "pretrain")).code == 0
    initial = {"initial": str(tmp_path / "pretrain")}
    vqa = write(tmp_path, data, "vqa", annotations=[], answers=2, **initial)
    captioning = write(tmp_path, data, "caption", **initial)
    assert run("finetune", vqa).code == run("finetune", captioning).code == 0
    plan = json.loads(run("plan", captioning, "--json").out)
    assert plan["facts"]["images"] == 12 and 2 < plan["facts"]["images_per_prefix"] < 3

    files = ("--regions", data.regions, "--allow-trained-images", "--device", "cpu")
    result = run("evaluate", tmp_path / "vqa", *files, "--questions", data.questions)
    assert result.code == 0
    options = ("--questions", data.questions, "--predictions", predictions(tmp_path / "vqa"), "--json")
    assert json.loads(run("score", "vqa", *options).out)["overall"] == json.loads(result.out)["overall"]
    asked = read_lines(data.questions)
    for item, record in zip(read_lines(tmp_path / "vqa/evaluation/items.jsonl"), asked, strict=True):
        images = record["images"]
        assert item.get("images", [item.get("image_id")]) == images and item["times"] == record["times"]

    assert run("evaluate", tmp_path / "caption", *files, "--captions", data.captions, "--beams", 1).code == 0
    written = json.loads(predictions(tmp_path / "caption").read_text())
    assert len(written) == len({json.dumps(record["images"]) for record in read_lines(data.captions)})
    options = ("--annotations", data.captions, "--predictions", predictions(tmp_path / "caption"), "--tokenised")
    pytest.importorskip("pycocoevalcap.bleu")
    assert json.loads(run("score", "caption", *options, "--json").out)["count"] == len(written)


def predictions(folder):
    return folder / "evaluation" / "predictions.json"


def test_more_images_than_the_model_takes_are_one_sentence(run, tmp_path):
    data = make_several(make_data(tmp_path / "data"))
    config = write(tmp_path, data, "pretrain")
    refused(run("pretrain", config, "inputs.max_images=3"), "has 4 images", "inputs.max_images 3")
    assert run("pretrain", config).code == 0
    limited = write(tmp_path, data, "caption", initial=str(tmp_path / "pretrain"))
    refused(run("finetune", limited, "inputs.max_images=2"), "images, more than inputs.max_images 2")


# --- the predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Export a model with times that takes 3 images, and write images 1.png to 3.png beside it."""
    place = tmp_path_factory.mktemp("several")
    detector = make_detector()
    detector.save(place / "detector")
    trained = make_trained(all_abilities(detector.extractor, max_images=3, times=True))
    export(write_run(place / "run", trained, description="photographs"), place / "export", place / "detector")
    for number in (1, 2, 3):
        make_image(number).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.from_pretrained(folder / "export", "cpu")


def test_a_tuple_is_one_prefix_of_its_images_in_order_with_their_times(folder, predictor):
    one, two = (folder / f"{number}.png" for number in (1, 2))
    regions = predictor.regions([one, two])
    words = predictor.trained.tokenise([QUESTION])
    prefix = make_prefix(join_images(regions, [0, 8.5]), predictor.trained.processor.tags)
    wanted = answer_probabilities(predictor.trained, [prefix], words)[0].max()
    answer = predictor.answer((one, two), QUESTION, times=[0, 8.5])
    assert answer.probability == pytest.approx(float(wanted), abs=1e-6)
    assert dict(predictor.answer(tuple(regions), QUESTION, times=[0, 8.5]).top) == pytest.approx(dict(answer.top))
    others = [
        predictor.answer(one, QUESTION),
        predictor.answer((one, two), QUESTION),
        predictor.answer((two, one), QUESTION, times=[0, 8.5]),
        predictor.answer((one, two), QUESTION, times=[0, 9.5]),
    ]
    assert len({round(other.probability, 6) for other in [answer, *others]}) == 5


def test_a_list_of_tuples_and_images_gives_what_its_items_give_one_by_one(folder, predictor):
    one, two, three = (str(folder / f"{number}.png") for number in (1, 2, 3))
    groups = [(one, two), three, (two, one, three), (one, two)]
    times = [[0, 1], [2], [0, 1, 2], [0, 3]]
    assert predictor.caption(groups) == [predictor.caption(group) for group in groups]
    alone = [predictor.match(group, "a star", times=own) for group, own in zip(groups, times, strict=True)]
    assert predictor.match(groups, "a star", times=times) == pytest.approx(alone, abs=1e-5)
    assert alone[0] != pytest.approx(alone[3], abs=1e-4), "only their times differ"
    assert predictor.predict("match", groups, ["a star"] * 4, times) == pytest.approx(alone, abs=1e-5)
    with pytest.raises(UserError, match="'match' takes texts; give them"):
        predictor.predict("match", groups)
    with pytest.raises(UserError, match="'caption' takes no texts; omit them"):
        predictor.predict("caption", groups, ["a star"] * 4)


def test_an_image_of_several_tuples_is_processed_once(folder, predictor, monkeypatch):
    seen = []
    detector, detect = predictor._finder.detector, predictor._finder.detector.detect_prepared
    monkeypatch.setattr(detector, "detect_prepared", lambda *arrays: seen.append(len(arrays[0])) or detect(*arrays))
    one, two, three = (folder / f"{number}.png" for number in (1, 2, 3))
    predictor.caption([(one, two), (two, three), one])
    assert seen == [3]


def test_an_explanation_names_the_image_of_each_region(folder, predictor):
    images = (folder / "1.png", folder / "2.png")
    found, answer = (apply(images, QUESTION, times=[0, 1]) for apply in (predictor.explain, predictor.answer))
    assert dict(found.result.top) == pytest.approx(dict(answer.top), abs=1e-5)
    counts = [sum(region.image == number for region in found.regions) for number in (0, 1)]
    assert counts == [len(regions) for regions in predictor.regions(list(images))]
    assert {region.image for region in predictor.explain(images[1], QUESTION).regions} == {0}


def test_wrong_numbers_of_images_or_times_are_one_sentence(folder, predictor):
    image = folder / "1.png"
    with pytest.raises(UserError, match="an input has 4 images but the model takes 1 to 3"):
        predictor.caption([image, (image,) * 4])
    with pytest.raises(UserError, match="has 0 images"):
        predictor.answer((), QUESTION)
    with pytest.raises(UserError, match="one time per image"):
        predictor.match((image, image), "a star", times=[1])
    with pytest.raises(UserError, match="one time per image"):
        predictor.match([image, image], "a star", times=[[1]])
    untimed = Predictor(replace(predictor.trained, processor=replace(predictor.trained.processor, times=False)), folder)
    with pytest.raises(UserError, match="does not use times; omit them"):
        untimed.explain((image, image), QUESTION, times=[0, 1])


# --- the commands


def test_questions_of_a_file_about_several_images_are_answered_as_soon_as_their_images_are_read(
    run, folder, predictor, monkeypatch
):
    monkeypatch.setattr(dimvl.image_inputs, "AT_ONCE", 1)
    records = [
        {"images": ["1.png", "3.png"], "question": QUESTION, "times": [0, 2]},
        {"image": "2.png", "question": "a star"},
        {"images": ["2.png", "none.png"], "question": "a star"},
        {"images": ["3.png", "2.png", "1.png"], "question": "is it red"},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = run("answer", folder / "questions.jsonl", "--model", folder / "export", "--device", "cpu")
    assert result.code == 1 and "3 images done, 1 skipped" in result.err
    found = {record["question_id"]: record for record in map(json.loads, result.out.splitlines())}
    assert found.keys() == {0, 1, 3}
    for number, answer in found.items():
        record = records[number]
        assert {name: answer[name] for name in record} == record
        images = tuple(folder / name for name in record.get("images", [record.get("image")]))
        wanted = predictor.answer(images, record["question"], times=record.get("times"))
        assert answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    (folder / "questions.jsonl").write_text(
        json.dumps({"images": ["1.png", "2.png", "3.png", "4.png"], "question": "a"})
    )
    many = run("answer", folder / "questions.jsonl", "--model", folder / "export", "--device", "cpu")
    refused(many, "an input has 4 images but the model takes 1 to 3")


def test_images_together_are_one_input(run, folder, predictor):
    images = (folder / "2.png", folder / "1.png")
    options = ("--model", folder / "export", "--device", "cpu")
    caption, probability = predictor.caption(images), predictor.match(images, "a star")
    assert run("caption", *images, "--together", *options).out == f"{caption}\n"
    named = {"images": [str(image) for image in images]}
    assert json.loads(run("caption", *images, "--together", "--json", *options).out) == {**named, "caption": caption}
    assert run("match", *images, "a star", "--together", *options).out == f"{probability:.3f}\n"
    alone = run("match", *images, "a star", *options).out.splitlines()
    assert alone == [f"{image}: {predictor.match(image, 'a star'):.3f}" for image in images]
    refused(run("caption", *images, *images, "--together", *options), "has 4 images but the model takes 1 to 3")
