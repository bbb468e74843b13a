import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dimvl.tasks.captioning.prediction
import dimvl.tasks.inference
from dimvl.data.annotations import Question
from dimvl.data.prefixes import ImageReader, PrefixImages
from dimvl.data.scenes import SceneOptions, read_worlds, write_scenes
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.metrics.captions import CaptionScores
from dimvl.metrics.wording import faults
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.answering.config import VqaEvaluation
from dimvl.tasks.answering.prediction import answer_probabilities, answer_questions, evaluate_questions
from dimvl.tasks.captioning.config import CaptionEvaluation
from dimvl.tasks.captioning.prediction import caption_images, evaluate_captions, text_rows, with_official_scores
from dimvl.tasks.pretraining.matching import match_pairs
from dimvl.tasks.task import Evaluation
from dimvl.trained_model import TrainedModel
from tests.exports import all_abilities, make_trained
from tests.factories import TEXTS, make_extractor, make_regions, make_store

IMAGES = ("1", "2", "3", "4", "5", "6")
OPTIONS = DecodingOptions(beams=2, max_tokens=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return RegionStore(make_store(tmp_path_factory.mktemp("store") / "regions", len(IMAGES), empty=4))


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return make_trained()


def make_questions() -> list[Question]:
    pairs = [(image, text) for image in IMAGES for text in TEXTS]
    return [Question(100 + place, (image,), text, ()) for place, (image, text) in enumerate(pairs)]


def test_answers_depend_on_neither_the_order_nor_the_batches(
    trained: TrainedModel, store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = make_questions()
    whole = answer_questions(trained, store, questions)
    assert whole.keys() == {question.question_id for question in questions}
    assert len(set(whole.values())) > 1, "a model that answers everything alike would prove nothing"
    monkeypatch.setattr(dimvl.tasks.inference, "ROW_BUDGET", 1)
    assert answer_questions(trained, store, questions[::-1]) == whole


def test_captions_depend_on_neither_the_order_nor_the_batches(
    trained: TrainedModel, store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = caption_images(trained, store, IMAGES, OPTIONS)
    assert list(whole) == list(IMAGES)
    assert len(set(whole.values())) > 1
    monkeypatch.setattr(dimvl.tasks.inference, "ROW_BUDGET", 1)
    assert caption_images(trained, store, IMAGES[::-1], OPTIONS) == whole


def test_match_probabilities_are_in_the_order_of_the_pairs(trained: TrainedModel, store: RegionStore) -> None:
    pairs = [(image, text) for image in IMAGES for text in TEXTS]
    whole = match_pairs(trained, store, pairs)
    single = [match_pairs(trained, store, [pair])[0] for pair in pairs]
    np.testing.assert_allclose(whole, single, atol=1e-5)  # fp32 sums in another order
    assert whole.std() > 1e-3
    assert ((whole > 0) & (whole < 1)).all()


def test_progress_ends_with_everything_done(
    trained: TrainedModel, store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.tasks.inference, "ROW_BUDGET", 60)
    seen: list[tuple[int, int]] = []
    answer_questions(trained, store, make_questions(), lambda done, total: seen.append((done, total)))
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == (18, 18)


def test_a_caption_is_never_longer_than_the_positions_allow(store: RegionStore) -> None:
    trained = make_trained(all_abilities(text_tokens=3))
    captions = caption_images(trained, store, IMAGES, DecodingOptions(beams=1))
    assert 0 < max(len(caption.split()) for caption in captions.values()) <= 3
    with pytest.raises(UserError, match=r"max_tokens is 5 but .* at most 4 tokens"):
        caption_images(trained, store, IMAGES, DecodingOptions(beams=1, max_tokens=5))


def test_a_caption_is_by_default_as_long_as_those_of_training_may_be(store: RegionStore) -> None:
    trained = make_trained(all_abilities(text_tokens=60))
    assert text_rows(trained, DecodingOptions(beams=2)) == 2 * 61
    longest = max(len(text.split()) for text in caption_images(trained, store, IMAGES[:2]).values())
    assert 40 < longest <= 60, "a model without training seldom ends a text"


def test_a_store_of_another_extractor_is_refused_with_both_names(tmp_path: Path, trained: TrainedModel) -> None:
    other = replace(trained.processor, extractor=replace(make_extractor(), name="other", fingerprint="0" * 64))
    store = RegionStore(make_store(tmp_path / "regions"))
    with pytest.raises(UserError, match=r"made by fake .* trained with other"):
        match_pairs(replace(trained, processor=other), store, [("1", "a star")])


@pytest.mark.parametrize(
    ("image_id", "text", "message"), [("77", "a star", "lacks image '77'"), ("1", " ", "is empty")]
)
def test_an_image_that_the_store_lacks_and_an_empty_text_are_refused(
    trained: TrainedModel, store: RegionStore, image_id: str, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        match_pairs(trained, store, [("1", "a star"), (image_id, text)])


def test_nothing_to_evaluate_is_an_error_not_a_score(trained: TrainedModel, store: RegionStore) -> None:
    with pytest.raises(UserError, match="nothing to evaluate"):
        answer_questions(trained, store, [])
    with pytest.raises(UserError, match="nothing to evaluate"):
        caption_images(trained, store, [])


def test_texts_that_are_too_long_are_cut_with_one_warning_that_counts(
    trained: TrainedModel, store: RegionStore, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a star " * 30
    cut = "a star " * 8  # 16 tokens, the limit
    with caplog.at_level(logging.WARNING):
        probabilities = match_pairs(trained, store, [("1", long), ("2", long), ("1", cut), ("2", "a star")])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["2 of 4 texts are longer than 16 tokens and were truncated"]
    assert probabilities[0] == pytest.approx(probabilities[2], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "ability"),
    [({"answers": ()}, "answer"), ({"captions": False}, "caption"), ({"matches": False}, "match")],
)
def test_an_ability_that_a_model_was_not_trained_for_is_refused(
    store: RegionStore, changes: dict[str, object], ability: str
) -> None:
    trained = make_trained(all_abilities(**changes))
    with pytest.raises(UserError, match=rf"cannot {ability}; give one trained to {ability}"):
        if ability == "answer":
            answer_questions(trained, store, make_questions())
        elif ability == "caption":
            caption_images(trained, store, IMAGES)
        else:
            match_pairs(trained, store, [("1", "a star")])


def test_answers_to_a_question_file_are_in_the_official_format_with_their_scores(
    tmp_path: Path, trained: TrainedModel, store: RegionStore
) -> None:
    questions_file, annotations_file = tmp_path / "questions.json", tmp_path / "annotations.json"
    answers = answer_questions(trained, store, make_questions())
    questions = [
        {"question_id": question.question_id, "image_id": int(question.image_id), "question": question.text}
        for question in make_questions()
    ]
    annotations = [
        {
            "question_id": question_id,
            "answers": [{"answer": answer if place % 2 else "never"}] * 10,
            "question_type": ["odd", "even"][place % 2],
            "answer_type": "other",
        }
        for place, (question_id, answer) in enumerate(answers.items())
    ]
    questions_file.write_text(json.dumps({"info": {"description": "synthetic"}, "questions": questions}))
    annotations_file.write_text(json.dumps({"annotations": annotations}))
    found = evaluate_questions(trained, store, VqaEvaluation(questions=questions_file, annotations=annotations_file))
    records, scores = found.predictions, found.scores
    assert {record["question_id"]: record["answer"] for record in records} == answers
    assert all(set(record) == {"question_id", "answer"} for record in records)
    right = {question_id: place % 2 for place, question_id in enumerate(answers)}
    assert {item["question_id"]: item["accuracy"] for item in found.items} == right
    first = {"question_id": 100, "image_id": 1, "question": TEXTS[0], "prediction": answers[100]}
    people = (answers[100] if right[100] else "never",) * 10
    kinds = {"kind": ["odd", "even"][right[100]], "answer_type": "other"}
    assert found.items[0] == {**first, "answers": people, "accuracy": right[100], **kinds}
    assert scores["by_kind"] == {"even": 1.0, "odd": 0.0} and scores["overall"] == 0.5 and scores["count"] == 18
    assert scores["data"]["synthetic"]
    unscored = evaluate_questions(trained, store, VqaEvaluation(questions=questions_file))
    assert (unscored.predictions, unscored.items[0], unscored.scores) == (records, first, {})


@pytest.mark.parametrize("own", [5, "5"])
def test_ids_are_written_as_the_annotation_file_has_them(tmp_path: Path, trained: TrainedModel, own: int | str) -> None:
    with RegionStoreWriter(tmp_path / "regions", make_extractor()) as writer:
        writer.add(make_regions(1, "000000000005"))
    questions_file, annotations_file = tmp_path / "questions.json", tmp_path / "captions.json"
    asked = [{"question_id": each, "image_id": own, "question": TEXTS[0]} for each in ("01", "1", 2)]
    questions_file.write_text(json.dumps({"questions": asked}))
    annotations_file.write_text(json.dumps({"annotations": [{"id": 1, "image_id": own, "caption": TEXTS[0]}]}))
    padded = RegionStore(tmp_path / "regions")
    questions = evaluate_questions(trained, padded, VqaEvaluation(questions=questions_file))
    captions = evaluate_captions(trained, padded, CaptionEvaluation(captions=annotations_file))
    assert [item["image_id"] for item in [*questions.items, *captions.items, *captions.predictions]] == [own] * 5
    for records in (questions.items, questions.predictions):
        assert [record["question_id"] for record in records] == ["01", "1", 2]


def test_images_without_captions_are_captioned_and_not_scored(
    tmp_path: Path, trained: TrainedModel, store: RegionStore
) -> None:
    listed, lines = tmp_path / "image_info.json", tmp_path / "some.jsonl"
    listed.write_text(json.dumps({"images": [{"id": 2, "file_name": "2.png"}, {"id": 1, "file_name": "1.png"}]}))
    lines.write_text('{"image": "2"}\n{"image": 1, "caption": "a star"}\n')
    found = with_official_scores(evaluate_captions(trained, store, CaptionEvaluation(captions=listed)))
    some = evaluate_captions(trained, store, CaptionEvaluation(captions=lines))
    captions = caption_images(trained, store, ["2", "1"], DecodingOptions(beams=3))
    assert found.predictions == [{"image_id": image, "caption": captions[str(image)]} for image in (2, 1)]
    assert found.scores == {} and not any(found.left_out.values())
    assert found.items == [{"image_id": image, "prediction": captions[str(image)]} for image in (2, 1)]
    assert [item.get("references") for item in some.items] == [None, ["a star"]] and some.scores["count"] == 1
    assert some.left_out["image without a caption to compare with"] == 1
    with pytest.raises(UserError, match=r"image_info\.json lacks captions, .*; remove --worlds"):
        evaluate_captions(trained, store, CaptionEvaluation(captions=listed, worlds=tmp_path / "worlds.jsonl"))


def evaluate_two_images(folder: Path, trained: TrainedModel, store: RegionStore) -> Evaluation:
    captions = folder / "captions.json"
    annotations_file = [{"id": place, "image_id": image, "caption": "a star"} for place, image in enumerate([2, 1, 2])]
    captions.write_text(json.dumps({"annotations": annotations_file}))
    return evaluate_captions(trained, store, CaptionEvaluation(captions=captions, beams=2))


def test_captions_of_images_that_are_not_scenes_have_no_fact_scores(
    tmp_path: Path, trained: TrainedModel, store: RegionStore
) -> None:
    found = evaluate_two_images(tmp_path, trained, store)
    expected = caption_images(trained, store, ["2", "1"], DecodingOptions(beams=2))
    assert found.predictions == [{"image_id": 2, "caption": expected["2"]}, {"image_id": 1, "caption": expected["1"]}]
    form = [faults(expected[image]) for image in ("2", "1")]
    said = {"prediction": expected["2"], "references": ["a star", "a star"], "means": form[0]}
    assert found.items[0] == {"image_id": 2, **said}
    means = {name: (form[0][name] + form[1][name]) / 2 for name in form[0]}
    assert found.scores.items() >= {**means, "count": 2}.items()
    assert set(found.scores) == {"task", "data", "count", "bad_endings", "repeated_phrases"}


def test_captions_are_scored_only_by_the_scenes_of_their_images(
    tmp_path: Path, trained: TrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    write_scenes(tmp_path, SceneOptions(train=2, heldout=1, compositional=0))
    train, mine = tmp_path / "train", tmp_path / "train" / "mine.jsonl"
    ids = list(read_worlds(train / "worlds.jsonl"))
    with RegionStoreWriter(tmp_path / "regions", make_extractor()) as writer:
        for image in ids:
            writer.add(make_regions(image, str(image)))
    store = RegionStore(tmp_path / "regions")
    mine.write_text("".join(f'{{"image": "{image:012}.png", "caption": "a star"}}\n' for image in ids))
    for captions in (train / "captions.json", mine):
        assert (
            "fact_precision" in evaluate_captions(trained, store, CaptionEvaluation(captions=captions, beams=2)).scores
        )
    with pytest.raises(UserError, match=f"no scene of image '{ids[0]}' .* give the worlds.jsonl of the same split"):
        options = CaptionEvaluation(captions=train / "captions.json", worlds=tmp_path / "heldout" / "worlds.jsonl")
        evaluate_captions(trained, store, options)
    (train / "worlds.jsonl").write_text("")
    assert "fact_precision" not in evaluate_captions(trained, store, CaptionEvaluation(captions=mine, beams=2)).scores
    assert "facts are not scored" in caplog.text


def test_captions_get_official_scores_or_the_reason_for_their_absence(
    tmp_path: Path,
    trained: TrainedModel,
    store: RegionStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = evaluate_two_images(tmp_path, trained, store)
    given = {str(place): record["caption"] for place, record in enumerate(found.predictions)}

    def score(predictions: dict[str, str], references: dict[str, list[str]]) -> CaptionScores:
        assert predictions == given and references == {"0": ["a star"] * 2, "1": ["a star"]}
        per_image = {"1": {"CIDEr": 1.0}, "0": {"CIDEr": 2.0}}
        return CaptionScores(
            corpus={"CIDEr": 1.5},
            per_image=per_image,
            statistics={image: {} for image in per_image},
            left_out={"SPICE": "why"},
            failed=("SPICE",),
            count=2,
            references=3,
        )

    monkeypatch.setattr(dimvl.tasks.captioning.prediction, "caption_scores", score)
    scored = with_official_scores(found)
    assert scored.scores == {**found.scores, "official": {"CIDEr": 1.5}, "left_out": {"SPICE": "why"}}
    assert [item["official"] for item in scored.items] == [{"CIDEr": 2.0}, {"CIDEr": 1.0}]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["SPICE is missing: why"]

    def fail(*_: object) -> None:
        raise UserError("no Java")

    monkeypatch.setattr(dimvl.tasks.captioning.prediction, "caption_scores", fail)
    left = with_official_scores(found)
    assert left == replace(found, scores={**found.scores, "left_out": {"official": "no Java"}})


def test_a_shared_prefix_is_computed_once_for_all_questions_of_an_image(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(all_abilities(shared_prefix=True))
    reader = ImageReader(store, trained.processor.tags, trained.processor.max_regions)
    once = reader.prefixes(PrefixImages(np.array([0, 1, 4]), np.ones(3, dtype=int)))
    words = trained.tokenise(TEXTS)
    shared = answer_probabilities(trained, [prefix for prefix in once for _ in words], words * 3)
    alone = answer_probabilities(trained, [replace(prefix) for prefix in once for _ in words], words * 3)
    torch.testing.assert_close(shared, alone, atol=1e-6, rtol=0)  # fp32 sums in another order
    assert (alone[0] - alone[1]).abs().max() > 1e-3, "questions matter"
    batches = []
    forward = type(trained.model).forward
    monkeypatch.setattr(
        type(trained.model), "forward", lambda model, batch: batches.append(batch.layout) or forward(model, batch)
    )
    answers = answer_questions(trained, store, make_questions()[::-1])
    assert len(batches[0].num_regions) == len(IMAGES) and len(batches[0].text_lengths) == len(answers)
    both_ways = make_trained()
    answer_questions(both_ways, store, make_questions())
    assert len(batches[1].num_regions) == len(answers), (
        "where image and question see each other, the prefix is not shared"
    )
