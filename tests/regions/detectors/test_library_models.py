"""Detectors of torchvision and transformers on tiny random weights give the results of their libraries."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from tests.regions.detectors.tiny_detectors import (
    CLASSES,
    SIGMOID_FAMILIES,
    TORCHVISION,
    save_transformers,
    torchvision_file,
    torchvision_state,
)

KINDS = ("torchvision", "detr", "rt_detr")
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved detector of each kind."""
    place = tmp_path_factory.mktemp("detectors")
    weights, names = torchvision_file(place)
    load_detector(TORCHVISION, weights=str(weights), classes=names).save(place / "torchvision")
    for family in ("detr", *SIGMOID_FAMILIES):
        load_detector(save_transformers(place / "hub" / family, family)).save(place / family)
    return place


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def detector(folders, kind):
    return load_detector(folders / kind, {"score_threshold": THRESHOLD, "min_regions": 0})


def random_images(*sizes, seed=0):
    random = np.random.default_rng(seed)
    coarse = [random.integers(0, 255, (6, 6, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(array).resize(size) for array, size in zip(coarse, sizes, strict=True)]


def library_result(detector, image):
    """Boxes in pixels, labels from 0 and scores, computed by the library's own code."""
    size = image.size
    if hasattr(detector, "processor"):
        inputs = detector.processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            output = detector.network(**inputs)
        (found,) = detector.processor.post_process_object_detection(output, THRESHOLD, target_sizes=[size[::-1]])
        labels = found["labels"]
    else:
        torchvision = import_torchvision()
        state = detector.network.state_dict()
        sides = {"min_size": detector.parameters["shortest_side"], "max_size": detector.parameters["longest_side"]}
        cuts = {"box_score_thresh": THRESHOLD, "box_nms_thresh": 0.5, "box_detections_per_img": 100}
        build = torchvision.models.get_model_builder(detector.architecture)
        model = build(num_classes=len(CLASSES) + 1, **sides, **cuts).eval()
        model.load_state_dict(state)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            (found,) = model([pixels])
        labels = found["labels"] - 1
    order = found["scores"].argsort(descending=True, stable=True)
    return [found["boxes"][order].numpy(), labels[order].numpy(), found["scores"][order].numpy()]


@pytest.mark.parametrize("kind", ["torchvision", "detr", *SIGMOID_FAMILIES])
def test_boxes_labels_and_scores_are_those_of_the_library(folders, kind):
    detector = load_detector(folders / kind, {"score_threshold": THRESHOLD, "min_regions": 0})
    for image in random_images((90, 70), (64, 64), (50, 111)):
        boxes, labels, scores = library_result(detector, image)
        (found,) = detector.detect([image])
        assert len(boxes) > 3 and len(set(labels.tolist())) > 1, "an image without objects would test nothing"
        width, height = image.size
        wanted = (boxes / [width, height, width, height]).clip(0, 1)  # the library does not clip boxes
        np.testing.assert_array_equal(found.class_ids[:, 0], labels)
        np.testing.assert_allclose(found.class_scores[:, 0], scores, atol=1e-3)  # kept in float16
        np.testing.assert_allclose(found.boxes, wanted, atol=1e-5)


def test_arrays_have_the_shapes_and_types_of_regions(detector):
    extractor = detector.extractor
    assert extractor.classes == CLASSES and extractor.attributes == () and extractor.feature_width == 16
    for found in detector.detect(random_images((64, 64), (90, 64))):
        count = len(found.boxes)
        assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
        assert (found.features.shape, found.features.dtype) == ((count, 16), np.float16)
        assert (found.class_ids.shape, found.class_ids.dtype) == ((count, 5), np.int16)
        assert (found.class_scores.shape, found.class_scores.dtype) == ((count, 5), np.float16)
        assert found.attribute_ids.shape == found.attribute_scores.shape == (count, 0)
        assert all(sorted(ids) == [0, 1, 2, 3, 4] for ids in found.class_ids.tolist())
        assert (found.class_scores > THRESHOLD - 1e-3)[:, 0].all()


def test_the_feature_of_a_box_does_not_change_when_others_are_dropped(detector):
    image = random_images((90, 70))
    (many,) = detector.detect(image)
    detector.configure({"max_regions": 2})
    (few,) = detector.detect(image)
    assert len(many.boxes) > len(few.boxes) == 2
    np.testing.assert_array_equal(few.boxes, many.boxes[:2])
    np.testing.assert_allclose(few.features, many.features[:2], rtol=2e-3, atol=1e-3)
    assert not np.allclose(few.features[0], few.features[1], atol=1e-2)


def test_the_minimum_is_reached_with_the_best_regions_below_the_threshold(detector):
    image = random_images((90, 70))
    threshold = float(np.median(detector.detect(image)[0].class_scores[:, 0]))
    (few,) = detector.configure({"score_threshold": threshold}).detect(image)
    (filled,) = detector.configure({"min_regions": len(few.boxes) + 2}).detect(image)
    assert len(filled.boxes) == len(few.boxes) + 2
    np.testing.assert_array_equal(filled.boxes[:-2], few.boxes)
    assert (filled.class_scores[-2:, 0] <= threshold + 1e-3).all()


def test_an_image_without_objects_is_one_region_without_a_class(detector):
    detector.configure({"score_threshold": 1.0, "min_regions": 0})
    for found in detector.detect(random_images((64, 64), (200, 90))):
        assert found.boxes.tolist() == [[0, 0, 1, 1]] and np.abs(found.features).sum() > 0
        assert (found.class_ids == -1).all() and (found.class_scores == 0).all()


def test_the_whole_image_is_appended_as_a_region_without_a_class(detector):
    image = random_images((90, 70))
    (without,) = detector.detect(image)
    detector.configure({"whole_image": True})
    (found,) = detector.detect(image)
    np.testing.assert_array_equal(found.boxes, [*without.boxes, [0, 0, 1, 1]])
    np.testing.assert_allclose(found.features[:-1], without.features, rtol=2e-3, atol=1e-3)
    assert (found.class_ids[-1] == -1).all() and (found.class_ids[:-1] >= 0).all()
    detector.configure({"max_regions": 1, "min_regions": 0})
    np.testing.assert_allclose(detector.detect(image)[0].features[-1], found.features[-1], rtol=2e-3, atol=1e-3)


def test_an_image_has_the_same_regions_alone_and_in_a_batch(detector):
    images = random_images((64, 64), (97, 64), (64, 130), (64, 64), (200, 200))
    for image, found in zip(images, detector.detect(images), strict=True):
        (alone,) = detector.detect([image])
        np.testing.assert_array_equal(found.class_ids[:, 0], alone.class_ids[:, 0])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-5)  # float32 sums in another order
        np.testing.assert_allclose(found.features, alone.features, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (500, 3), (3, 500)])
def test_slivers_are_described_or_fail_alone_and_change_nothing_for_later_images(folders, kind, size):
    image = random_images((90, 70))
    (wanted,) = load_detector(folders / kind).detect(image)
    detector = load_detector(folders / kind)
    try:
        (found,) = detector.detect(random_images(size))
        assert len(found.boxes) and np.isfinite(found.features).all()
    except (RuntimeError, ValueError):
        pass  # extraction skips the image
    np.testing.assert_array_equal(detector.detect(image)[0].features, wanted.features)


def test_saved_and_loaded_it_is_the_same_detector(folders, kind, tmp_path):
    sizes = {"height": 96, "width": 64} if kind == "rt_detr" else {"shortest_side": 48, "longest_side": 90}
    detector = load_detector(folders / kind, {"score_threshold": 0.25, "max_regions": 7, **sizes})
    detector.save(tmp_path / "again")
    loaded = load_detector(tmp_path / "again")
    assert loaded.extractor == detector.extractor
    assert loaded.extractor.parameters.items() >= {"score_threshold": 0.25, "max_regions": 7, **sizes}.items()
    image = random_images((90, 70))
    np.testing.assert_array_equal(loaded.detect(image)[0].features, detector.detect(image)[0].features)
    assert not list((tmp_path / "again").glob("*.bin"))


def test_the_size_that_images_are_scaled_to_takes_effect(folders, kind):
    sizes = {"height": 96, "width": 96} if kind == "rt_detr" else {"shortest_side": 30, "longest_side": 90}
    image = random_images((90, 70))
    usual, smaller = (load_detector(folders / kind, given).detect(image)[0] for given in ({}, sizes))
    assert usual.features.shape != smaller.features.shape or not np.allclose(
        usual.features, smaller.features, atol=0.01
    )


def test_the_fingerprint_follows_the_weights_and_not_the_thresholds(folders, kind, tmp_path):
    first = load_detector(folders / kind).extractor
    assert load_detector(folders / kind, {"max_regions": 3}).extractor.fingerprint == first.fingerprint
    if kind == "torchvision":
        weights, names = torchvision_file(tmp_path, seed=1)
        other = load_detector(TORCHVISION, weights=str(weights), classes=names)
    else:
        other = load_detector(save_transformers(tmp_path / "other", kind, seed=1))
    assert other.extractor.fingerprint != first.fingerprint


def test_torchvision_describes_given_boxes_like_the_boxes_it_finds(folders):
    detector = load_detector(folders / "torchvision", {"score_threshold": THRESHOLD})
    image = random_images((90, 70))
    (found,) = detector.detect(image)
    (described,) = detector.detect(image, [found.boxes])
    np.testing.assert_array_equal(described.boxes, found.boxes)
    np.testing.assert_allclose(described.features, found.features, rtol=4e-3, atol=2e-3)
    (backward,) = detector.detect(image, [found.boxes[::-1]])
    np.testing.assert_allclose(backward.features[::-1], described.features, rtol=4e-3, atol=2e-3)
    (nothing,) = detector.detect(image, [np.zeros((0, 4), np.float32)])
    assert nothing.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("family", ["detr", "rt_detr"])
def test_queries_cannot_describe_given_boxes(folders, family):
    with pytest.raises(UserError, match=r"cannot describe given boxes.*use a detector of torchvision"):
        load_detector(folders / family).detect(random_images((64, 64)), [np.array([[0, 0, 1, 1]], np.float32)])


def test_a_published_architecture_takes_weights_from_a_file(tmp_path):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = import_torchvision().models.get_model_builder(name)(weights=None, weights_backbone=None)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    detector = load_detector(name, {"shortest_side": 64}, weights=str(tmp_path / "w.safetensors"))
    extractor = detector.extractor
    assert extractor.feature_width == 1024 and len(extractor.classes) == 90  # COCO's names need no file
    assert extractor.classes[:2] == ("person", "bicycle")
    (found,) = detector.detect(random_images((64, 64)))
    assert found.features.shape == (len(found.boxes), 1024)


def bad_weights(folder):
    torch.save({"model": torchvision_state(), "more": [1]}, folder / "training.pth")
    torch.save({"a": 3}, folder / "numbers.pth")
    torch.save({"a": torch.zeros(1)}, folder / "foreign.pth")
    torch.save({"path": folder}, folder / "pickle.pth")  # a Python object: unpickling it could run any code
    (folder / "torn.pth").write_bytes((folder / "training.pth").read_bytes()[:999])
    (folder / "text.safetensors").write_text("x")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nowhere.pth", r"nowhere\.pth does not exist"),
        ("numbers.pth", "does not hold weights by name"),
        ("foreign.pth", "are not weights of fasterrcnn_tiny"),
        ("pickle.pth", "cannot be read as plain weights"),
        ("torn.pth", "cannot be read as plain weights"),
        ("text.safetensors", "not a whole safetensors file"),
    ],
)
def test_a_file_that_does_not_hold_weights_is_rejected(tmp_path, file, message):
    bad_weights(tmp_path)
    with pytest.raises(UserError, match=message):
        load_detector(TORCHVISION, weights=str(tmp_path / file))


def test_weights_inside_a_training_checkpoint_are_accepted_and_class_names_must_match_their_number(tmp_path):
    bad_weights(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    weights = str(tmp_path / "training.pth")
    assert load_detector(TORCHVISION, weights=weights, classes=names).extractor.classes == CLASSES
    names.write_text("one\ntwo")
    with pytest.raises(UserError, match="has 5 classes but 2 names are given"):
        load_detector(TORCHVISION, weights=weights, classes=names)
    with pytest.raises(UserError, match="has 5 classes but no names are given; give a file of 5 names"):
        load_detector(TORCHVISION, weights=weights)


def test_a_name_on_the_hub_is_downloaded_without_pickles_once_its_family_fits(folders, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folders / ("hub" if len(asked) < 4 else "nowhere") / "detr")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = load_detector("someone/detr@v2").extractor
    assert found.name == "someone/detr@v2"
    assert found.fingerprint == load_detector(folders / "hub" / "detr").extractor.fingerprint
    described = ("someone/detr", "v2", ["*.json"])  # once to know its kind, once to load it; kept after the first
    assert asked == [described, described, ("someone/detr", "v2", ["*.json", "*.safetensors"])]
    with pytest.raises(UserError, match=r"someone/other cannot be loaded by transformers"):
        load_detector("someone/other")
    assert asked[3:] == [("someone/other", None, ["*.json"])]


def test_an_unknown_name_or_setting_is_one_sentence_with_the_remedy(tmp_path, folders, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "fasterrcnn_resnet999": "neither a folder here nor one of torchvision's.*fasterrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn": "has no box head",
        str(tmp_path / "nowhere"): "does not exist; check the path",
        str(tmp_path / "empty"): "detector.json does not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            load_detector(name)
    with pytest.raises(UserError, match="omit the given ones"):
        load_detector(folders / "detr", weights="COCO_V1")
    with pytest.raises(UserError, match="has no weights IMAGENET; use COCO_V1"):
        load_detector("fasterrcnn_resnet50_fpn_v2", weights="IMAGENET")
    with pytest.raises(UserError, match=r"has no setting side; it has .*shortest_side"):
        load_detector(folders / "torchvision", {"side": 3})
    with pytest.raises(UserError, match="has no setting shortest_side; it has height"):
        load_detector(folders / "rt_detr", {"shortest_side": 3})
    with pytest.raises(UserError, match="shortest_side is 0; give a whole number from 1 to 4,096"):
        load_detector(folders / "detr", {"shortest_side": 0})


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("torchvision", "detector.json", lambda old: b"[1]", "is not a JSON object"),
        ("torchvision", "detector.json", lambda old: b'{"kind": "torchvision"}', "name: field required"),
        ("torchvision", "detector.json", lambda old: old.replace(b'"kite",', b""), "does not hold weights"),
        (
            "torchvision",
            "detector.json",
            lambda old: old.replace(b"score_", b"scare_"),
            "scare_threshold is 0.*: extra inputs",
        ),
        ("torchvision", "detector.json", lambda old: old.replace(b": 100", b': "100"'), "max_regions is '100'"),
        ("torchvision", "detector.json", lambda old: old.replace(b'"kite"', b"3"), "classes.* is 3: input should be a"),
        ("torchvision", "detector.safetensors", lambda old: old[:99], "not a whole safetensors file"),
        ("detr", "model.safetensors", lambda old: old[:99], "cannot be loaded by transformers"),
        ("detr", "config.json", lambda old: b"{", "cannot be loaded by transformers"),
        (
            "detr",
            "config.json",
            lambda old: b'{"model_type": "bert"}',
            "of the family bert, which is not supported",
        ),
        ("detr", "preprocessor_config.json", lambda old: b"{}", None),
    ],
)
def test_a_damaged_folder_is_named(folders, tmp_path, kind, name, change, message):
    shutil.copytree(folders / kind, tmp_path / kind)
    path = tmp_path / kind / name
    path.write_bytes(change(path.read_bytes()))
    if message is None:  # transformers then chooses by the model's family
        assert load_detector(tmp_path / kind)
        return
    with pytest.raises(UserError, match=message):
        load_detector(tmp_path / kind)


def test_detector_json_is_readable(folders):
    content = json.loads((folders / "torchvision" / "detector.json").read_text())
    assert content["kind"] == "torchvision" and content["name"] == TORCHVISION and content["classes"] == list(CLASSES)
    assert json.loads((folders / "detr" / "detector.json").read_text())["kind"] == "transformers"


def test_a_background_in_a_file_of_class_names_shifts_none(tmp_path, caplog):
    weights, names = torchvision_file(tmp_path)
    names.write_text("\n".join(["__background__", *CLASSES, "", ""]))
    assert load_detector(TORCHVISION, weights=str(weights), classes=names).extractor.classes == CLASSES
    assert "begins with '__background__', which is no class: it gets no id, and class 0 is 'bench'" in caplog.text
