"""Open-vocabulary detectors on tiny random weights find what their library finds, in the words of the vocabulary."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch

from dimvl.errors import UserError
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.detectors.open_vocabulary import GroundingDinoDetector, OwlDetector
from dimvl.regions.store import RegionStore
from tests.cli.calls import call, refused
from tests.regions.detectors.test_library_models import random_images
from tests.regions.detectors.tiny_detectors import save_transformers
from tests.regions.detectors.tiny_open_vocabulary import FAMILIES, NAMES, save_open_vocabulary

OWL, GROUNDING = FAMILIES[:2], FAMILIES[2:]
ALL = {"nms_threshold": 1.0, "score_threshold": 0.3, "min_regions": 0, "max_regions": 400}
SIZES = ((96, 48), (50, 90), (64, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("open")
    for family in FAMILIES:
        save_open_vocabulary(place / family, family)
    return place


@pytest.fixture(scope="module")
def loaded(folders):
    (folders / "names.txt").write_text("\n".join(NAMES))
    return {family: load_detector(folders / family, vocabulary=folders / "names.txt") for family in FAMILIES}


@pytest.fixture
def opened(loaded):
    def open_it(family, names=NAMES, **options):
        one = loaded[family]
        return type(one)(one.name, one.network, deepcopy(one.processor), one.tokenizer, names).configure(options)

    return open_it


def owl_reference(detector, image):
    """Boxes (fractions), labels and scores of the library's forward and post-processing, best first."""
    height, width, _ = detector.prepare(image).shape
    mean, std = (
        np.array(values, np.float32) for values in (detector.processor.image_mean, detector.processor.image_std)
    )
    canvas = np.full((48, 48, 3), 0.5, np.float32)
    canvas[:height, :width] = np.asarray(image.resize((width, height), detector.processor.resample)) / np.float32(255)
    if not detector.square:
        canvas = np.asarray(image.resize((48, 48), detector.processor.resample)) / np.float32(255)
    texts = [f"a photo of a {name}" for name in detector.classes]
    tokens = detector.tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt")
    pixels = torch.from_numpy((canvas - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        output = detector.network(pixel_values=pixels, **tokens)
    (found,) = detector.processor.post_process_object_detection(output, 0.3, target_sizes=[(height, width)])
    order = found["scores"].argsort(descending=True, stable=True)
    boxes, labels, scores = (found[name][order].numpy() for name in ("boxes", "labels", "scores"))
    boxes = boxes / [width, height, width, height]
    seen = ((boxes[:, :2] < 1) & (boxes[:, 2:] > 0)).all(1)
    return boxes[seen].clip(0, 1), labels[seen], scores[seen], int((~seen).sum())


@pytest.mark.parametrize("family", OWL)
def test_owl_boxes_names_and_scores_are_those_of_the_library_outside_the_padding(opened, family):
    detector = opened(family, **ALL)
    in_padding = 0
    for image in random_images(*SIZES):
        boxes, labels, scores, left_out = owl_reference(detector, image)
        (found,) = detector.detect([image])
        assert len(boxes) > 8 and len(set(labels.tolist())) > 1, "an image without objects would test nothing"
        np.testing.assert_allclose(found.class_scores[:, 0], scores, atol=1e-3)  # kept in float16
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-5)
        np.testing.assert_array_equal(found.class_ids[:, 0], labels)
        assert (found.boxes[:, :2] < 1).all()
        in_padding += left_out
    assert (in_padding > 0) == (family == "owlv2")


def grounding_output(detector, image, names):
    """The library's output for one text of all names, and its tokens."""
    import transformers

    processor = transformers.GroundingDinoProcessor(detector.processor, detector.tokenizer)
    inputs = processor(images=image, text=[list(names)], return_tensors="pt")
    inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        output = detector.network(**inputs)
    tokens = detector.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    return processor, output, tokens


@pytest.mark.parametrize("family", GROUNDING)
def test_grounding_dino_finds_words_as_the_library_does(opened, family):
    names = ("bench", "cat", "dog", "kite")
    detector = opened(family, names, **ALL)
    for image in random_images(*SIZES):
        processor, output, tokens = grounding_output(detector, image, names)
        output.logits = output.logits.clone()
        output.logits[..., [place for place, token in enumerate(tokens) if token not in names]] = -torch.inf
        scores = output.logits.sigmoid().amax(-1)[0]
        order = [query for query in scores.argsort(descending=True, stable=True).tolist() if scores[query] > 0.3]
        (found,) = detector.detect([image])
        assert len(order) == len(found) > 3
        for region, query in enumerate(order):
            limits = {"threshold": float(scores[query]) - 1e-6, "text_threshold": float(scores[query]) - 1e-6}
            (best,) = processor.post_process_grounded_object_detection(output, **limits, target_sizes=[(1, 1)])
            label = tokens[int(output.logits[0, query].argmax())]
            assert names[found.class_ids[region, 0]] == label and label in best["text_labels"]
            np.testing.assert_allclose(float(found.class_scores[region, 0]), float(scores[query]), atol=1e-3)
            wanted = best["boxes"][best["scores"].argmin()].clamp(0, 1)
            np.testing.assert_allclose(found.boxes[region], wanted, atol=1e-5)
            np.testing.assert_allclose(found.features[region], output.last_hidden_state[0, query], rtol=1e-3, atol=1e-3)


def test_the_probability_of_a_name_of_two_tokens_is_their_mean(opened):
    detector = opened("grounding-dino", **{**ALL, "score_threshold": 0.0})
    (image,) = random_images((64, 64))
    _, output, tokens = grounding_output(detector, image, NAMES)
    (own,) = detector._candidates([detector.prepare(image)])
    both = [tokens.index(word) for word in ("red", "sofa")]
    torch.testing.assert_close(own.probabilities[:, 4], output.logits[0, :, both].sigmoid().mean(-1))


def test_a_long_vocabulary_is_read_in_parts_whose_regions_are_one_list(folders, tmp_path):
    names = ["bench", "cat", "dog", "kite", "tree", "bird", "blue sofa", "red"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (image,) = random_images((64, 64))
    every = {**ALL, "score_threshold": 0.0}
    place = save_open_vocabulary(tmp_path / "short", "grounding-dino", max_text_len=12)
    whole = load_detector(place, every, vocabulary=tmp_path / "names.txt")
    assert [(chunk.start, chunk.means.shape[1]) for chunk in whole.chunks] == [(0, 5), (5, 3)]
    (found,) = whole.detect([image])
    boxes, scores, ids = [], [], []
    for start, part in ((0, names[:5]), (5, names[5:])):
        (tmp_path / "part.txt").write_text("\n".join(part))
        (own,) = load_detector(folders / "grounding-dino", every, vocabulary=tmp_path / "part.txt").detect([image])
        boxes, scores = [*boxes, *own.boxes], [*scores, *own.class_scores[:, 0]]
        ids += (own.class_ids[:, 0] + start).tolist()
    order = np.argsort(-np.array(scores), kind="stable")
    np.testing.assert_array_equal(found.class_ids[:, 0], np.array(ids)[order])
    np.testing.assert_allclose(found.boxes, np.array(boxes)[order], atol=1e-5)
    np.testing.assert_allclose(found.class_scores[:, 0], np.array(scores)[order], atol=1e-3)


def test_parts_of_a_vocabulary_suppress_each_other(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog")
    place = save_open_vocabulary(tmp_path / "two", "grounding-dino", max_text_len=4)
    detector = load_detector(place, ALL, vocabulary=tmp_path / "names.txt")
    assert len(detector.chunks) == 2
    twice = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.51], [0.6, 0.6, 0.9, 0.9]])
    probabilities = torch.tensor([[0.5, 0.0], [0.0, 0.8], [0.4, 0.0]])
    detector.configure({"nms_threshold": 0.5})
    assert [rows.tolist() for rows in detector._find(probabilities, twice)] == [[1, 2], [1, 0]]
    detector.chunks = detector.chunks[:1]
    assert [rows.tolist() for rows in detector._find(probabilities, twice)] == [[1, 0, 2], [1, 0, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_regions_have_their_names_and_are_the_same_alone_and_in_a_batch(opened, family):
    detector = opened(family, min_regions=0, whole_image=True)
    extractor = detector.extractor
    assert extractor.classes == NAMES and extractor.attributes == ()
    images = random_images((64, 64), (96, 48), (64, 64), (1, 1), (300, 3))
    for image, found in zip(images, detector.detect(images), strict=True):
        (alone,) = detector.detect([image])
        assert found.features.shape == (len(found), extractor.feature_width) and np.isfinite(found.features).all()
        assert found.boxes[-1].tolist() == [0, 0, 1, 1] and found.class_ids[-1, 0] == -1
        np.testing.assert_array_equal(found.class_ids[:, 0], alone.class_ids[:, 0])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-5)
        np.testing.assert_allclose(found.features, alone.features, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_it_has_its_vocabulary(opened, family, folders, tmp_path):
    detector = opened(family, score_threshold=0.25, max_regions=7)
    detector.save(tmp_path / "again")
    loaded = load_detector(tmp_path / "again")
    assert loaded.extractor == detector.extractor and loaded.classes == NAMES
    assert json.loads((tmp_path / "again" / "detector.json").read_text())["kind"] == "open_vocabulary"
    assert all((tmp_path / "again" / name).is_file() for name in loaded.files)
    (image,) = random_images((90, 70))
    np.testing.assert_array_equal(loaded.detect([image])[0].features, detector.detect([image])[0].features)
    with pytest.raises(UserError, match=r"again was saved with its vocabulary; omit .*names.txt"):
        load_detector(tmp_path / "again", vocabulary=folders / "names.txt")


@pytest.mark.parametrize("family", ["owlv2", "grounding-dino"])
def test_the_fingerprint_follows_names_their_order_and_the_prompt(opened, family, monkeypatch):
    first = opened(family).extractor.fingerprint
    assert opened(family, max_regions=11).extractor.fingerprint == first
    changed = {opened(family, names).extractor.fingerprint for names in (NAMES[:4], NAMES[::-1])}
    for kind in (OwlDetector, GroundingDinoDetector):
        monkeypatch.setattr(kind, "prompt", "an image of {}")
    assert len({first, *changed, opened(family).extractor.fingerprint}) == 4


def test_the_size_that_owl_scales_images_to_takes_effect(opened):
    image = random_images((90, 70))
    usual, larger = (opened("owlv2", **sizes).detect(image)[0] for sizes in ({}, {"height": 64, "width": 64}))
    assert np.isfinite(larger.features).all() and not np.allclose(usual.features[0], larger.features[0], atol=0.01)
    for sizes in ({"height": 60, "width": 60}, {"height": 64, "width": 48}):
        with pytest.raises(UserError, match=r"do not fit owlv2; give multiples of its patch of 8 pixels, both the"):
            opened("owlv2", **sizes)


def test_mistakes_with_a_vocabulary_are_one_sentence(folders, opened, tmp_path, caplog):
    for family in FAMILIES:
        with pytest.raises(UserError, match=rf"{family} is an open-vocabulary detector .*as --vocabulary"):
            load_detector(folders / family)
    (tmp_path / "names.txt").write_text("cat\ndog\ncat")
    with pytest.raises(UserError, match="has names twice: 'cat' in lines 1 and 3"):
        load_detector(folders / "owlv2", vocabulary=tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"has its own classes; omit the vocabulary"):
        load_detector(save_transformers(tmp_path / "detr", "detr"), vocabulary=tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"has its own classes; omit the vocabulary"):
        load_detector("scenes", vocabulary=tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"the name '\?' has 0 tokens, and grounding-dino reads 1 to 29; change it"):
        opened("grounding-dino", ["cat", "?", "dog"])
    with pytest.raises(UserError, match=r"has 30 tokens, and grounding-dino reads 1 to 29; change it"):
        opened("grounding-dino", ["cat", " ".join(["dog"] * 30)])
    detector = opened("owlv2", ["cat", " ".join(["dog"] * 30)])
    detector.detect(random_images((64, 64)))
    assert "1 name are longer than the 12 tokens that owlv2 reads" in caplog.text
    with pytest.raises(UserError, match="cannot describe given boxes"):
        detector.detect(random_images((64, 64)), [np.array([[0, 0, 1, 1]], np.float32)])


def test_the_command_finds_the_names_of_a_file(folders, tmp_path, monkeypatch, capfd):
    for number, image in enumerate(random_images(*SIZES)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    asked = ("extract", tmp_path / "photos", tmp_path / "store", "--where", folders / "owlv2", "--vocabulary")
    assert call(monkeypatch, capfd, *asked, tmp_path / "names.txt").code == 0
    extractor = RegionStore(tmp_path / "store").extractor
    assert extractor.classes == NAMES and extractor.recipe["vocabulary"] == str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n".join(NAMES[::-1]))
    refused(call(monkeypatch, capfd, *asked, tmp_path / "names.txt"), "store", "fingerprint")


def test_a_background_in_first_place_of_a_vocabulary_is_dropped_and_said(folders, loaded, tmp_path, caplog):
    (tmp_path / "names.txt").write_text("\n".join(["__background__", *NAMES]))
    found = load_detector(folders / "owlv2", vocabulary=tmp_path / "names.txt")
    assert found.extractor == loaded["owlv2"].extractor
    assert "begins with '__background__', which is no class" in caplog.text


def test_a_full_stop_in_a_name_does_not_end_it(opened):
    plain, stopped = (opened("grounding-dino", ["cat", name]) for name in ("red dog", "Red. Dog?"))
    assert torch.equal(plain.chunks[0].token_ids, stopped.chunks[0].token_ids)
    assert stopped.classes == ("cat", "Red. Dog?")


def test_the_names_are_embedded_once(opened, monkeypatch):
    detector = opened("owlvit")
    tower, calls = detector.network.owlvit.text_model, []
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    for _ in range(3):
        detector.detect(random_images((64, 64)))
    assert calls == [1]
