"""Retrieval: embeddings, two-stage ranking, evaluation, validation and the predictor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dimvl.tasks.inference
import dimvl.tasks.retrieval.evaluation as retrieval
import dimvl.tasks.retrieval.prediction as prediction
from dimvl.data.annotations import read_captions
from dimvl.errors import UserError
from dimvl.evaluation import evaluate
from dimvl.export import export
from dimvl.metrics.recall import ranks
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.tasks.pretraining.matching import match_logits
from dimvl.tasks.retrieval.config import RetrievalEvaluation
from dimvl.tasks.retrieval.evaluation import Gallery, embedding_scores, evaluate_retrieval, match_candidates
from dimvl.tasks.retrieval.prediction import embed_all_texts, embed_store, similarity, token_scores
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.tiny_runs import make_config, make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 9, empty=4)


@pytest.fixture(scope="module")
def store(data):
    return RegionStore(data.regions)


@pytest.fixture(scope="module")
def trained():
    return make_trained(all_abilities(aligns=True, shared_prefix=True))


def options(data, **changes):
    return RetrievalEvaluation(captions=data.captions, **changes)


def test_embeddings_depend_on_neither_the_order_nor_the_batches(data, store, trained, monkeypatch):
    images = [((str(number),), ()) for number in range(1, 10)]
    texts = [caption.text for caption in read_captions(data.captions)]
    whole, words = embed_store(trained, store, images), embed_all_texts(trained, texts)
    monkeypatch.setattr(dimvl.tasks.inference, "ROW_BUDGET", 1)
    other = embed_store(trained, store, images[::-1])
    torch.testing.assert_close(other.pooled.flip(0), whole.pooled, atol=1e-5, rtol=1e-4)
    assert other.counts[::-1].tolist() == whole.counts.tolist() == [len(store.read(place)) for place in range(9)]
    torch.testing.assert_close(embed_all_texts(trained, texts[::-1]).pooled.flip(0), words.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.rows.norm(dim=1), torch.ones(len(whole.rows)))


def test_token_wise_scores_do_not_depend_on_how_many_are_computed_at_once(data, store, trained, monkeypatch):
    images = embed_store(trained, store, [((str(number),), ()) for number in range(1, 10)])
    texts = embed_all_texts(trained, [caption.text for caption in read_captions(data.captions)])
    whole = embedding_scores(images, texts, "tokens")
    monkeypatch.setattr(retrieval, "SIMILARITIES", 1)
    assert np.allclose(embedding_scores(images, texts, "tokens"), whole, atol=1e-6)
    assert np.allclose(whole, token_scores(images, texts), atol=1e-6) and not whole[3].any()


@pytest.mark.parametrize(("shared", "together"), [(False, False), (True, False), (True, True)])
def test_the_second_stage_ranks_candidates_as_scoring_all_pairs_does(data, store, shared, together):
    trained = make_trained(all_abilities(aligns=True, shared_prefix=shared))
    gallery = Gallery.of(read_captions(data.captions), together)
    images = embed_store(trained, store, gallery.images)
    words = trained.tokenise([caption.text for caption in gallery.captions])
    texts = embed_all_texts(trained, [caption.text for caption in gallery.captions])
    scores = similarity(trained, images, texts).numpy()
    reader = trained.processor.reader(store)
    matches = np.array(
        [
            match_logits(trained, [reader.prefix(store.read(store.position(key[0][0])))] * len(words), words).numpy()
            for key in gallery.images
        ]
    )
    if together:
        owners = [gallery.images.index(caption.images) for caption in gallery.captions]
        scores, matches = (
            np.stack([one[:, np.array(owners) == image].sum(axis=1) for image in range(9)], axis=1)
            for one in (scores, matches)
        )
    everything = scores + matches
    found = match_candidates(trained, store, gallery, scores, scores.shape[1])["image_to_text"]
    assert np.allclose(found.scores, np.take_along_axis(everything, found.places, axis=1), atol=1e-4)
    wanted = ranks(everything, gallery.right["image_to_text"])
    assert ranks(scores, gallery.right["image_to_text"], found).tolist() == wanted.tolist()
    few = match_candidates(trained, store, gallery, scores, 3)["text_to_image"]
    best = np.argsort(-scores.T, axis=1, kind="stable")[:, :3]
    assert few.places.tolist() == best.tolist()
    assert np.allclose(few.scores, np.take_along_axis(everything.T, best, axis=1), atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_equal_texts_tie_in_both_stages_however_they_are_batched(data, store, tmp_path, monkeypatch, shared):
    trained = make_trained(all_abilities(aligns=True, shared_prefix=shared))
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(f'{{"id": {n}, "image": {n}, "caption": "a red star"}}\n' for n in range(1, 10)))
    calls = iter(range(1, 10**6))

    def noisy(function):
        return lambda trained, prefixes, words: (
            function(trained, prefixes, words) + 1e-3 * torch.tensor([next(calls) for _ in words])
        )

    embed = prediction.embed_texts

    def noisy_embeddings(trained, words):
        found = embed(trained, words)
        return replace(found, pooled=found.pooled + 1e-3 * torch.tensor([[next(calls)] for _ in words]))

    monkeypatch.setattr(prediction, "embed_texts", noisy_embeddings)
    monkeypatch.setattr(retrieval, "match_logits", noisy(match_logits))
    scores = evaluate_retrieval(trained, store, RetrievalEvaluation(captions=file, candidates=9)).scores
    for stage in (scores, scores["embedding_only"]):
        assert (stage["image_to_text"]["r1"], stage["image_to_text"]["median_rank"]) == (0, 9)
    assert scores["texts_of_other_images"] == 9


def test_an_evaluation_reports_both_stages_with_intervals_and_what_it_found(data, store, trained, tmp_path):
    run = write_run(tmp_path / "run", trained)
    found = evaluate(run, load_model(run), store, {"captions": data.captions, "candidates": 4}, tmp_path / "out")
    scores, texts = found.scores, len(read_captions(data.captions))
    assert (scores["images"], scores["texts"], scores["candidates"]) == (9, texts, 4)
    assert {"embedding_only / text_to_image / r1", "image_to_text / r10"} <= scores["intervals"].keys()
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [item["direction"] for item in items] == ["image_to_text"] * 9 + ["text_to_image"] * texts
    of_texts = [item["rank"] for item in items[9:]]
    assert scores["text_to_image"]["r1"] == pytest.approx(np.mean([rank == 1 for rank in of_texts]))
    first = [item for item in found.predictions if "caption_id" in item]
    right = [
        prediction["images"][0]["image_id"] == item["image_id"]
        for prediction, item in zip(first, items[9:], strict=True)
    ]
    assert right == [rank == 1 for rank in of_texts]


@pytest.mark.parametrize("candidates", [0, 4])
def test_progress_counts_what_is_embedded_and_then_what_is_matched(data, store, trained, candidates):
    calls, captions = [], read_captions(data.captions)
    chosen = options(data, candidates=candidates)
    evaluate_retrieval(trained, store, chosen, lambda done, total: calls.append((done, total)))
    number = 9 + len({caption.text for caption in captions})
    assert calls[0] == (9, 9) and calls[1] == (number, number) and calls == sorted(calls)
    assert len(calls) == 2 if not candidates else calls[-1][0] == calls[-1][1] > number


def test_the_texts_of_an_image_can_be_one_query(data, store, trained):
    found = evaluate_retrieval(trained, store, options(data, candidates=0, together=True))
    captions = read_captions(data.captions)
    images = embed_store(trained, store, Gallery.of(captions).images).pooled
    texts = embed_all_texts(trained, [caption.text for caption in captions]).pooled
    added = torch.stack([(images @ texts.T)[:, 2 * image : 2 * image + 2].sum(dim=1) for image in range(9)], dim=1)
    assert found.scores["queries"] == 9 and found.scores["texts"] == 18
    right = (added.argmax(dim=0) == torch.arange(9)).float().mean()
    assert found.scores["text_to_image"]["r1"] == pytest.approx(float(right))
    first = found.predictions[0]
    assert first["caption_ids"] == [caption.caption_id for caption in captions[:2]]
    assert found.items[9]["query"] == f"{captions[0].text} {captions[1].text}"
    with pytest.raises(ValueError, match="not for together; omit one of them"):
        options(data, together=True, extra_positives=True)


def test_a_model_that_only_aligns_has_no_second_stage(data, store):
    trained = make_trained(all_abilities(aligns=True, matches=False))
    with pytest.raises(UserError, match="has no matching head to rank candidates; give candidates=0"):
        evaluate_retrieval(trained, store, options(data, candidates=2))
    scores = evaluate_retrieval(trained, store, options(data)).scores
    assert scores["text_to_image"] == scores["embedding_only"]["text_to_image"]
    with pytest.raises(UserError, match="candidates is 10 but there are only 9 images; lower it"):
        evaluate_retrieval(make_trained(all_abilities(aligns=True)), store, options(data, candidates=10))
    with pytest.raises(UserError, match="cannot embed image"):
        evaluate_retrieval(make_trained(all_abilities()), store, options(data))


def test_extra_positives_are_right_too(data, store, trained, monkeypatch):
    captions = read_captions(data.captions)

    def every_answer(image_ids, text_ids):
        assert list(image_ids) == list(range(1, 10)) and list(text_ids) == [caption.caption_id for caption in captions]
        return {"eccv": ([list(range(len(text_ids)))] * 9, [[3]] * len(text_ids))}

    monkeypatch.setattr(retrieval, "extra_owners", every_answer)
    scores = evaluate_retrieval(trained, store, options(data, candidates=0, extra_positives=True)).scores
    assert scores["eccv"]["image_to_text"]["r1"] == 1
    third = Gallery.of(captions).images[3]
    images = embed_store(trained, store, [third, *(((str(number),), ()) for number in range(1, 10))]).pooled
    texts = embed_all_texts(trained, [caption.text for caption in captions]).pooled
    products = images @ texts.T
    best = (products[0] >= products[1:].amax(dim=0) - 1e-6).float().mean()  # the third is one of the nine, but rounded
    assert scores["eccv"]["text_to_image"]["r1"] == pytest.approx(float(best))


def test_training_for_retrieval_learns_to_find_and_validates_by_recall(data, tmp_path):
    section = {"captions": data.captions, "every": 30}
    training = {"steps": 60, "rows_per_step": 400, "learning_rate": 1e-2, "log_every": 30, "keep": 1}
    changes = {"model": {"dropout": 0.0, "width": 32}, "contrastive": {"group": 9, "width": 16}, "matching_share": 0.2}
    run = run_training(
        make_config(data, tmp_path / "run", "retrieve", training=training, validation=section, **changes)
    )
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    recalls = [line["validation"] for line in logged if "validation" in line]
    trained = load_model(run)
    assert trained.processor.aligns and trained.processor.matches and not trained.processor.captions
    scores = evaluate_retrieval(trained.without_guard(), RegionStore(data.regions), options(data, candidates=0)).scores
    found = (scores["image_to_text"]["r1"] + scores["text_to_image"]["r1"]) / 2
    assert max(recalls) == pytest.approx(found) and found > 0.6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"contrastive": {"tokens_weight": 0, "global_weight": 0}}, "both 0, so nothing is aligned; raise one of them"),
        ({"contrastive": {"global_weight": 0}}, "validation.score is global.*set validation.score to the other one"),
        ({"contrastive": {"tokens_weight": 0}}, None),
    ],
)
def test_a_score_that_is_not_trained_does_not_choose_the_best_checkpoint(data, tmp_path, changes, says):
    changes = {"validation": {"captions": data.captions, "every": 1}, **changes}
    if says is None:
        make_config(data, tmp_path, "retrieve", **changes)
        return
    with pytest.raises(ValueError, match=says):
        make_config(data, tmp_path, "retrieve", **changes)


def test_a_pretrained_model_is_evaluated_by_retrieval_if_candidates_are_named(data, tmp_path):
    shares = {"objectives": {"shares": {"contrastive": 1.0}, "contrastive": {"group": 4}}}
    run = run_training(make_config(data, tmp_path / "run", **shares))
    trained = load_model(run).without_guard()
    store, values = RegionStore(data.regions), {"captions": data.captions}
    assert "image_to_text" in evaluate(run, trained, store, {**values, "candidates": 2}, tmp_path / "a").scores
    assert "image_to_text" not in evaluate(run, trained, store, {**values, "max_tokens": 2}, tmp_path / "b").scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An export with a detector, and an image beside it."""
    place = tmp_path_factory.mktemp("predictor")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(place / "run", make_trained(all_abilities(detector.extractor, aligns=True)))
    export(run, place / "export", place / "detector")
    make_image(1).save(place / "1.png")
    make_image(2).save(place / "2.png")
    return place


def test_an_export_embeds_images_and_texts_and_aligns_words_with_regions(folder):
    predictor = Predictor.from_pretrained(folder / "export", "cpu")
    images = predictor.embed_image([folder / "1.png", folder / "2.png"])
    texts = predictor.embed_text(["a small star", "two circles"])
    assert np.allclose(images[0], predictor.embed_image(folder / "1.png"), atol=1e-5)
    assert np.allclose(texts[1], predictor.embed_text("two circles"), atol=1e-5)
    assert all(vector.shape == (8,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in images)
    found = predictor.align(folder / "1.png", "a small aboved star")
    assert found.words == ["a", "small", "aboved", "star"]
    assert found.similarities.shape == (4, len(found.regions)) and np.abs(found.similarities).max() <= 1 + 1e-5
    assert predictor.align(folder / "1.png", "a ☃ star").words == ["a", "[UNK]", "star"]
    with pytest.raises(UserError, match=r"knows no word of '☃ ☃'; use other words"):
        predictor.align(folder / "1.png", "☃ ☃")
    with pytest.raises(UserError, match="is empty"):
        predictor.embed_text(" ")


def test_a_model_without_alignment_does_not_embed(folder, tmp_path):
    run = write_run(tmp_path / "run", make_trained(replace(all_abilities(make_detector().extractor))))
    predictor = Predictor.from_pretrained(export(run, tmp_path / "export", folder / "detector"))
    for ask in (
        lambda: predictor.embed_image(folder / "1.png"),
        lambda: predictor.embed_text("a star"),
        lambda: predictor.align(folder / "1.png", "a star"),
    ):
        with pytest.raises(UserError, match=r"cannot (embed image|embed text|align), but it can answer"):
            ask()
