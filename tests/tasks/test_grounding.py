"""Grounding: which regions are right, the loss over ragged regions, training, evaluation and prediction."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dimvl.data.annotations import Phrase, read_phrases
from dimvl.data.examples import collate
from dimvl.data.prefixes import PrefixImages
from dimvl.data.region_targets import Pointed
from dimvl.errors import UserError
from dimvl.evaluation import evaluate
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.tasks.grounding.matching import covered
from dimvl.tasks.grounding.prediction import means, region_probabilities, summary
from dimvl.tasks.grounding.training import OBJECTIVE, GroundModule
from dimvl.tasks.texts import text_example
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests import typed_predictor
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.factories import CLASSES, make_model, make_processor
from tests.tiny_runs import make_config, make_data

NOWHERE = {"phrase": "two", "boxes": []}


def write_phrases(data, file, more=(), split=""):
    """Phrases that name the class of each region, with its box in pixels; and one that no region covers."""
    store, lines = RegionStore(data.regions), []
    for place in range(len(store)):
        regions = store.read(place)
        for box, classes in zip(regions.boxes.tolist(), regions.class_ids.tolist(), strict=True):
            x1, y1, x2, y2 = (side * size for side, size in zip(box, (100, 80, 100, 80), strict=True))
            lines.append({"phrase": f"the {CLASSES[classes[0]]}", "boxes": [[x1, y1, x2 + 0.1, y2 + 0.1]]})
        lines[-1] = {"phrase": "a small one", "boxes": [[0, 0, 1.5, 1.5]]}
        lines += more
        for line in lines:
            line.setdefault("image", regions.image_id)
            line |= {"split": split} if split else {}
            more = [dict(one) for one in more if "image" not in one] or [dict(NOWHERE) for _ in more]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(scope="module")
def phrases(data):
    return write_phrases(data, data.regions.parent / "phrases.jsonl", split="val")


def ground_config(data, output, phrases, **changes):
    return make_config(data, output, "ground", phrases=phrases, **changes)


def examples(store, processor, shared, nowhere=False):
    """All phrases of two images, right regions of each; one phrase may fit none."""
    words = [np.array(processor.tokenizer.encode(text)) for text in ("a red star", "the circle", "two")]
    made = []
    for prefix in processor.reader(store).prefixes(PrefixImages.find(store, [(("1",), ()), (("3",), ())])):
        right = [np.array([0, 2]), np.array([1]), np.array([], int) if nowhere else np.array([len(prefix.boxes) - 1])]
        every = [(words, right)] if shared else [([one], [own]) for one, own in zip(words, right, strict=True)]
        made += [
            text_example("", OBJECTIVE, prefix, texts, processor.tokenizer, shared, Pointed(own))
            for texts, own in every
        ]
    return made


@pytest.mark.parametrize("nowhere", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_loss_and_gradient_are_those_of_a_plain_softmax_of_each_phrase(data, shared, nowhere):
    processor = make_processor(shared_prefix=shared)
    module = GroundModule(make_model(vocabulary=len(processor.tokenizer), grounded=1 + nowhere), processor)
    made = examples(RegionStore(data.regions), processor, shared, nowhere)
    batch = collate(made, module.shape)
    own = module(batch)[OBJECTIVE]
    assert batch.counts() == {OBJECTIVE: 6}
    gradients = torch.autograd.grad(own, list(module.model.region_head.parameters()))

    rows, head, plain = module.model(batch), module.model.region_head, 0.0
    layout, text = batch.layout, 0
    for number, example in enumerate(made):
        start = layout.region_starts[number]
        regions = rows[start : start + layout.num_regions[number]]
        for right in example.target.right:
            last = rows[layout.text_starts[text] + layout.text_lengths[text] - 1]
            logits = head.region(regions) @ head.text(last) / 16**0.5 + head.alone(regions)[:, 0]
            if nowhere:
                logits = torch.cat([logits, head.nowhere(last)])
            wanted = right if len(right) else [len(logits) - 1]
            plain = plain - F.softmax(logits, dim=0)[wanted].sum().log()
            text += 1
    # fp32: sums run in another order
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(plain, list(head.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_batch_without_phrases_gives_a_zero_that_is_connected_to_every_weight_of_the_head(data):
    processor = make_processor()
    module = GroundModule(make_model(vocabulary=len(processor.tokenizer), grounded=2), processor)
    loss = module(collate([], module.shape))[OBJECTIVE]
    assert loss.item() == 0
    assert all(not each.any() for each in torch.autograd.grad(loss, list(module.model.region_head.parameters())))


def test_an_image_without_regions_and_a_phrase_that_fits_none_give_finite_gradients(tmp_path):
    data, processor = make_data(tmp_path, 2, empty=1), make_processor()
    store = RegionStore(data.regions)
    module = GroundModule(make_model(vocabulary=len(processor.tokenizer), grounded=2), processor)
    nothing = [np.array([], int)]
    made = [
        text_example("", OBJECTIVE, prefix, [np.array([7])], processor.tokenizer, False, Pointed(nothing))
        for prefix in processor.reader(store).prefixes(PrefixImages.find(store, [(("1",), ()), (("2",), ())]))
    ]
    gradients = torch.autograd.grad(
        module(collate(made, module.shape))[OBJECTIVE], list(module.model.region_head.parameters())
    )
    assert all(each.isfinite().all() for each in gradients) and gradients[0].any()


@pytest.mark.parametrize("shared", [False, True])
def test_a_phrase_has_the_same_probabilities_whatever_shares_its_batch(data, shared):
    trained = make_trained(all_abilities(grounds=True, shared_prefix=shared))
    store = RegionStore(data.regions)
    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, [((str(n),), ()) for n in (1, 2, 3)]))
    words = trained.tokenise(["a red star", "the circle"])
    pairs = [(prefix, text) for prefix in prefixes for text in words]
    together = region_probabilities(trained, *map(list, zip(*pairs, strict=True)))
    for (prefix, text), found in zip(pairs, together, strict=True):
        assert found.shape == (len(prefix.boxes),)
        # fp32: sums run in another order
        np.testing.assert_allclose(found, region_probabilities(trained, [prefix], [text])[0], atol=1e-5)
        assert found.sum() == pytest.approx(1, abs=1e-5)
    assert not np.allclose(together[0], together[1]), "the phrase matters"


def phrase(image, boxes, size=None):
    return Phrase(1, (image,), "x", tuple(boxes), size)


def test_a_region_is_right_if_its_iou_with_a_box_is_above_one_half_and_the_largest_one_is_the_baseline(data):
    store = RegionStore(data.regions)
    regions = store.read(0)
    x1, y1, x2, y2 = regions.boxes[1].astype(float).tolist()
    whole = [100 * x1, 80 * y1, 100 * x2, 80 * y2]
    half = [whole[0], whole[1], whole[2], whole[1] + (whole[3] - whole[1]) / 2]
    more = [whole[0], whole[1], whole[2], whole[1] + (whole[3] - whole[1]) / 1.9]
    doubled = [2 * side for side in more]
    found = covered(
        [phrase("1", [half]), phrase("1", [more]), phrase("1", [doubled], (200, 160)), phrase("1", [half, more])],
        store,
        10,
    )
    assert [1 in each.right for each in found] == [False, True, True, True]
    sizes = np.prod(regions.boxes[:, 2:] - regions.boxes[:, :2], axis=1)
    assert found[0].guess == int(sizes.argmax())
    assert covered([phrase("1", [more])], store, 1)[0].right.tolist() == [], "only the regions that the model sees"
    with pytest.raises(UserError, match="outside its image of 100 x 80; give "):
        covered([phrase("1", [[10, 10, 130, 60]])], store, 10)


def test_scores_are_means_and_a_phrase_that_no_region_covers_is_wrong():
    def score(right, hit, boxes=1, split=""):
        target = np.array([[0, 0, 1, 1]] * boxes, float).reshape(-1, 4)
        own = Phrase(1, ("1",), "x", ((0, 0, 9, 9),) * boxes, split=split)
        fact = covered_fact(target, right)
        return means(own, fact, np.array([[0, 0, 1, 1.0 if hit else 0.4]] if hit is not None else []).reshape(-1, 4))

    def covered_fact(boxes, right):
        from dimvl.tasks.grounding.matching import Covered

        return Covered(boxes, np.array(right, int), 0)

    found = summary(
        [
            score([0, 1], hit=True, split="a"),
            score([1], hit=False, boxes=2, split="a"),
            score([], hit=False, split="b"),
            score([], hit=None, boxes=0),
        ]
    )
    assert (found["count"], found["accuracy"], found["upper_bound"]) == (4, 0.5, 0.75)
    assert found["of_upper_bound"] == pytest.approx(2 / 3) and found["baseline"] == 0.25
    assert found["one_box"] == {
        "count": 2,
        "accuracy": 0.5,
        "upper_bound": 0.5,
        "of_upper_bound": 1.0,
        "baseline": 0.5,
    }
    assert found["by_split"]["b"]["accuracy"] == 0 and found["by_split"]["a"]["count"] == 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_learns_is_evaluated_and_exported_and_finds_phrases_in_images(data, phrases, tmp_path, shared):
    config = ground_config(
        data,
        tmp_path / "run",
        phrases,
        shared_prefix=shared,
        training={"steps": 12, "rows_per_step": 400},
        validation={"phrases": phrases, "every": 6},
    )
    run_training(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["losses"][OBJECTIVE] for line in lines if "losses" in line]
    assert losses[-1] < losses[0] * 0.9
    report = json.loads((tmp_path / "run" / "match.json").read_text())
    assert report["texts_dropped"]["no region has an IoU above .5 with its boxes"] >= 6

    trained, store = load_model(tmp_path / "run"), RegionStore(data.regions)
    with pytest.raises(UserError, match="was trained on 6 of the 6 images"):
        evaluate(tmp_path / "run", trained, store, {"phrases": phrases}, tmp_path / "scores")
    found = evaluate(tmp_path / "run", trained.without_guard(), store, {"phrases": phrases}, tmp_path / "scores")
    scores = found.scores
    assert scores["upper_bound"] < 1 and scores["accuracy"] == pytest.approx(
        scores["of_upper_bound"] * scores["upper_bound"]
    )
    validated = [line["validation"] for line in lines if "validation" in line]
    assert validated[-1] == pytest.approx(scores["accuracy"]) or max(validated) == pytest.approx(scores["accuracy"])
    assert scores["by_split"]["val"]["accuracy"] == scores["accuracy"]
    assert {"accuracy", "of_upper_bound", "one_box / accuracy"} <= scores["intervals"].keys()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder, detector = tmp_path_factory.mktemp("export"), make_detector()
    detector.save(folder / "detector")
    trained = make_trained(all_abilities(detector.extractor, grounds=True, task="ground", shared_prefix=True))
    export(write_run(folder / "run", trained), folder / "out", str(folder / "detector"))
    return Predictor.from_pretrained(folder / "out")


def test_the_predictor_returns_regions_with_boxes_in_pixels_best_first(predictor):
    image = make_image(3)
    one = predictor.ground(image, "a red star", top=2)
    several = predictor.ground(image, ["a red star", "the circle"])
    assert one.regions == several[0].regions[:2] and len(several) == 2
    assert one.probabilities == pytest.approx(several[0].probabilities[:2], abs=1e-5) and one.nowhere == 0
    assert several[0].probabilities == sorted(several[0].probabilities, reverse=True)
    regions = predictor.regions(image)
    assert max(max(region.box) for region in one.regions) <= max(regions.width, regions.height)
    raw = predictor.predict("ground", image, "a red star")[0]
    assert one.probabilities[0] == pytest.approx(float(raw.max()))
    assert len(typed_predictor.regions_of_phrases(predictor, image, "a star")) == 3
    with pytest.raises(UserError, match="top is 0"):
        predictor.ground(image, "a star", top=0)
    with pytest.raises(UserError, match="empty"):
        predictor.ground(image, " ")


def test_phrases_without_a_box_need_their_own_class(data, tmp_path):
    file = write_phrases(data, tmp_path / "phrases.jsonl", more=[dict(NOWHERE)])
    with pytest.raises(UserError, match="has no box; set no_region=true"):
        run_training(ground_config(data, tmp_path / "run", file))
    config = ground_config(data, tmp_path / "own", file, no_region=True)
    run_training(config)
    trained, store = load_model(tmp_path / "own").without_guard(), RegionStore(data.regions)
    found = evaluate(tmp_path / "own", trained, store, {"phrases": file}, tmp_path / "scores")
    assert len(found.items) == len(read_phrases(file)) and found.scores["upper_bound"] > 0
    other = make_trained(all_abilities(grounds=True, task="ground"))
    with pytest.raises(UserError, match="the model always finds a region; train with no_region=true"):
        evaluate(write_run(tmp_path / "always", other), other, store, {"phrases": file}, tmp_path / "other")


def test_boxes_of_other_images_and_an_option_without_effect_are_refused(data, phrases, tmp_path):
    with pytest.raises(UserError, match="has a box; set no_region=false"):
        run_training(ground_config(data, tmp_path / "run", phrases, no_region=True))
    file = tmp_path / "none.jsonl"
    file.write_text(json.dumps({"image": "1", "phrase": "a star", "boxes": [[0, 0, 2, 2]]}))
    with pytest.raises(UserError, match=r"no IoU is above .5; check that boxes and store"):
        run_training(ground_config(data, tmp_path / "other", file))
    with pytest.raises(ValueError, match="images names 2 files and phrases 1; give one per file"):
        ground_config(data, tmp_path / "third", phrases, images=[file, None])
