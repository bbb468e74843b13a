"""dimvl's own detector with tiny random weights; the accuracy of the shipped one is tested at the end."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from dimvl.data.scenes import SceneOptions, render, sample_world
from dimvl.errors import UserError
from dimvl.regions.detectors.network import DetectorNetwork, DetectorSettings
from dimvl.regions.detectors.scenes import Detector, load_scene_detector
from dimvl.regions.detectors.settings import loaded

ATTRIBUTES = {"size": ("small", "large"), "colour": ("red", "green", "blue"), "texture": ("plain", "dotted")}


def settings(**changes):
    return DetectorSettings(
        **{
            "classes": ("circle", "square", "star"),
            "attributes": ATTRIBUTES,
            "channels": (4, 6, 6, 8, 8, 8),
            "head_width": 16,
            "attribute_head_width": 12,
            "class_width": 8,
            "attribute_width": 6,
            "side": 64,
            "proposals": 12,
            "score_threshold": 0.26,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def detector():
    """Random weights, scaled so that class scores differ between boxes."""
    made = Detector.initialise(settings(), seed=0)
    with torch.no_grad():
        made.network.faster_rcnn.roi_heads.box_predictor.class_scores.weight.mul_(10)
        made.network.faster_rcnn.roi_heads.box_predictor.hidden[0].weight.mul_(6)
    return made


def random_images(*sizes, seed=0):
    random = np.random.default_rng(seed)
    coarse = [random.integers(0, 255, (6, 6, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(array).resize(size) for array, size in zip(coarse, sizes, strict=True)]


def assert_same(first, second):
    # Convolutions of other batch sizes add in another order: float32 rounding, then float16 storage.
    np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-5)
    np.testing.assert_allclose(first.features, second.features, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(first.class_ids, second.class_ids)
    np.testing.assert_allclose(first.class_scores, second.class_scores, atol=1e-3)
    np.testing.assert_array_equal(first.attribute_ids, second.attribute_ids)
    np.testing.assert_allclose(first.attribute_scores, second.attribute_scores, atol=1e-3)


def test_arrays_have_the_shapes_and_types_of_regions(detector):
    for found in detector.detect(random_images((64, 64), (90, 64))):
        count = len(found.boxes)
        assert count >= 2
        assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
        assert (found.features.shape, found.features.dtype) == ((count, 14), np.float16)
        assert (found.class_ids.shape, found.class_ids.dtype) == ((count, 3), np.int16)
        assert (found.class_scores.shape, found.class_scores.dtype) == ((count, 3), np.float16)
        assert (found.attribute_ids.shape, found.attribute_ids.dtype) == ((count, 3), np.int16)
        assert (found.attribute_scores.shape, found.attribute_scores.dtype) == ((count, 3), np.float16)
        assert (found.boxes >= 0).all() and (found.boxes <= 1).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_regions_come_best_first_above_the_threshold_with_their_classes_in_order(detector):
    (found,) = detector.detect(random_images((64, 64)))
    best = found.class_scores[:, 0]
    assert (np.diff(best.astype(np.float32)) <= 1e-3).all()
    assert (best >= 0.26 - 1e-3).all()
    assert (np.diff(found.class_scores.astype(np.float32), axis=1) <= 0).all()
    assert (found.class_scores.astype(np.float32).sum(axis=1) <= 1 + 2e-3).all()  # the rest is background
    assert all(sorted(ids) == [0, 1, 2] for ids in found.class_ids.tolist())


def test_attribute_ids_point_into_one_flat_vocabulary_in_the_order_of_the_groups(detector):
    names = detector.extractor.attributes
    assert names == ("small", "large", "red", "green", "blue", "plain", "dotted")
    (found,) = detector.detect(random_images((64, 64)))
    for ids in found.attribute_ids:
        for attribute, group in zip(ids, ATTRIBUTES.values(), strict=True):
            assert names[attribute] in group


def test_an_image_has_the_same_regions_alone_and_in_a_batch(detector):
    # The second and fifth are of one size once scaled; the others make batches of their own.
    images = random_images((64, 64), (97, 64), (64, 130), (200, 200), (194, 128), (64, 64))
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert_same(found, alone)
    assert_same(detector.detect(images[::-1])[-1], together[0])


def test_describing_the_found_boxes_gives_the_same_regions(detector):
    images = random_images((64, 64), (150, 75))
    found = detector.detect(images)
    assert all(len(regions.boxes) > 1 for regions in found)
    for first, second in zip(found, detector.detect(images, [regions.boxes for regions in found]), strict=True):
        assert_same(first, second)


def test_given_boxes_keep_their_order(detector):
    image = random_images((64, 64))
    boxes = np.array([[0.5, 0.5, 1, 1], [0, 0, 0.4, 0.3], [0.2, 0.1, 0.9, 0.6]], dtype=np.float32)
    forward, backward = detector.detect(image, [boxes])[0], detector.detect(image, [boxes[::-1]])[0]
    np.testing.assert_array_equal(forward.boxes, boxes)
    np.testing.assert_allclose(forward.features[::-1], backward.features, rtol=2e-3, atol=1e-3)
    assert not np.allclose(forward.features[0], forward.features[1], atol=1e-2)


def test_a_larger_image_is_scaled_to_the_shorter_side_and_gives_the_same_fractions(detector):
    (large,) = random_images((384, 256))
    assert_same(detector.detect([large])[0], detector.detect([large.resize((96, 64), Image.Resampling.BILINEAR)])[0])


def test_an_image_without_objects_is_one_region_without_a_class(detector):
    blind = Detector.initialise(settings(score_threshold=1.0), seed=3)
    images = random_images((64, 64), (200, 90))
    whole = np.array([[0, 0, 1, 1]], dtype=np.float32)
    for found, described in zip(blind.detect(images), blind.detect(images, [whole, whole]), strict=True):
        np.testing.assert_array_equal(found.boxes, whole)
        np.testing.assert_allclose(found.features, described.features, rtol=2e-3, atol=1e-3)
        assert (found.class_ids == -1).all() and (found.class_scores == 0).all()
        assert (found.attribute_ids == -1).all() and (found.attribute_scores == 0).all()
        assert (described.class_ids >= 0).all()
    assert np.abs(found.features).sum() > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (17, 9)])
def test_images_of_any_shape_are_described(detector, size):
    (found,) = detector.detect(random_images(size))
    assert len(found.boxes) >= 1 and np.isfinite(found.features).all()


def test_a_sliver_seen_first_changes_nothing_for_later_images(detector):
    # torchvision's pooling keeps the scale that it infers from its first image.
    fresh = Detector(DetectorNetwork(detector.settings))
    fresh.network.load_state_dict(detector.network.state_dict())
    sliver, *ordinary = random_images((2000, 3), (64, 64))
    fresh.detect([sliver])
    assert_same(fresh.detect(ordinary)[0], detector.detect(ordinary)[0])


def test_no_images_give_no_detections(detector):
    assert detector.detect([]) == []


def test_at_most_max_regions_are_returned(detector):
    network = DetectorNetwork(settings(max_regions=1))
    network.load_state_dict(detector.network.state_dict())
    (found,), (all_found,) = Detector(network).detect(random_images((64, 64))), detector.detect(random_images((64, 64)))
    assert len(all_found.boxes) > len(found.boxes) == 1
    np.testing.assert_allclose(found.boxes, all_found.boxes[:1])


class AlternatingClasses(torch.nn.Module):
    """Leaves proposals unchanged and classifies them alternately as the first and the second class."""

    def hidden(self, rows):
        return rows[:, :8]

    def class_scores(self, rows):
        classes = torch.arange(len(rows)) % 2 + 1
        return torch.nn.functional.one_hot(classes, 4).float() * 5

    def forward(self, rows):
        return self.class_scores(rows), torch.zeros(len(rows), 16)


def largest_overlap(boxes):
    sides = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    overlaps = shared / (areas[:, None] + areas - shared)
    return overlaps[~np.eye(len(boxes), dtype=bool)].max()


def test_two_regions_of_different_classes_overlap_at_most_by_the_threshold():
    detector = Detector.initialise(settings(proposals=60), seed=0)
    detector.network.faster_rcnn.roi_heads.box_predictor = AlternatingClasses()
    (found,) = detector.detect(random_images((64, 64)))
    assert {0, 1} <= set(found.class_ids[:, 0].tolist())
    assert largest_overlap(found.boxes) <= 0.5 + 1e-4


def test_saved_and_loaded_it_is_the_same_detector(detector, tmp_path):
    detector.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")
    assert loaded.settings == detector.settings
    assert loaded.extractor == detector.extractor
    loaded.save(tmp_path / "again")
    for name in ("detector.json", "detector.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "detector" / name).read_bytes()
    weights = safetensors.numpy.load_file(tmp_path / "detector" / "detector.safetensors")
    assert {str(array.dtype) for array in weights.values()} == {"float16", "int64"}  # half the size
    image = random_images((64, 64))
    boxes = [np.array([[0.1, 0.2, 0.7, 0.8]], dtype=np.float32)]
    ours, theirs = detector.detect(image, boxes)[0], loaded.detect(image, boxes)[0]
    np.testing.assert_allclose(ours.features, theirs.features, rtol=0.02, atol=0.02)  # float16 weights


def test_changed_settings_take_effect_without_reloading():
    keep_all = {"score_threshold": 0.0, "nms_threshold": 1.0}
    changed = Detector.initialise(settings(), seed=0).configure({"proposals": 3, "shortest_side": 32, **keep_all})
    made = Detector.initialise(settings(proposals=3, side=32, **keep_all), seed=0)
    assert changed.extractor == made.extractor
    (first,), (second,) = (one.detect(random_images((64, 64))) for one in (changed, made))
    assert len(first) == 3
    assert_same(first, second)


def test_the_fingerprint_follows_the_weights_and_the_seed():
    first, same, other = (Detector.initialise(settings(), seed=seed).extractor for seed in (1, 1, 2))
    assert first == same
    assert first.fingerprint != other.fingerprint
    assert first.parameters["side"] == 64 and first.feature_width == 14


def test_initialising_a_detector_keeps_the_global_random_state():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    Detector.initialise(settings(), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("detector.json", None, "does not exist"),
        ("detector.safetensors", None, "does not exist"),
        ("detector.json", lambda content: content[:40], "is not valid JSON"),
        ("detector.json", lambda content: b"[1]", "is not a JSON object"),
        ("detector.json", lambda content: b'{"classes": ["star"]}', r"settings\.attributes: field required"),
        ("detector.safetensors", lambda content: content[: len(content) // 2], "not a whole safetensors file"),
        ("detector.safetensors", lambda content: b"", "not a whole safetensors file"),
        ("detector.json", lambda content: content.replace(b'"class_width": 8', b'"class_width": 9'), "does not fit"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_a_remedy(detector, tmp_path, name, change, message):
    detector.save(tmp_path)
    if change is None:
        (tmp_path / name).unlink()
    else:
        damage(tmp_path, name, change)
    with pytest.raises(UserError, match=message) as caught:
        Detector.load(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": "160"}, "settings.side is '160': input should be a valid integer"),
        ({"head_width": -1}, "settings.head_width is -1: input should be greater"),
        ({"head_width": 10**9}, "settings.head_width is 1000000000: input should be less"),
        ({"channels": [8, 8]}, "settings.channels is .*: .*at least 6 items"),
        ({"max_regions": None}, "settings.max_regions is None"),
        ({"classes": "star"}, "settings.classes is 'star'"),
        ({"score_threshold": 7}, "score_threshold is 7.0; give a number from 0 to 1"),
        ({"head_width": 4096, "class_width": 4096, "attribute_head_width": 4096}, "does not fit the settings"),
    ],
)
def test_settings_of_other_types_or_ranges_or_of_other_weights_are_refused(detector, tmp_path, changes, message):
    detector.save(tmp_path)
    settings = json.loads((tmp_path / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps(settings | changes))
    with pytest.raises(UserError, match=message):
        Detector.load(tmp_path)


def test_a_network_of_other_weights_is_only_built_without_memory():
    devices = []

    def build() -> torch.nn.Linear:
        devices.append(torch.get_default_device().type)
        return torch.nn.Linear(3, 4)

    for weights in ({"weight": torch.zeros(9, 9), "bias": torch.zeros(4)}, {"weight": torch.zeros(4, 3)}):
        with pytest.raises(UserError, match="other weights"):
            loaded(build, weights, "other weights")
    assert devices == ["meta", "meta"]


def test_settings_are_readable_json(detector, tmp_path):
    detector.save(tmp_path)
    content = json.loads((tmp_path / "detector.json").read_text())
    assert content["classes"] == ["circle", "square", "star"]
    assert list(content["attributes"]) == ["size", "colour", "texture"]


def test_training_learns_one_image_with_all_its_attributes():
    network = Detector.initialise(settings(anchor_sizes=(20, 32)), seed=0).network.train()
    array = np.full((64, 64, 3), 60, dtype=np.uint8)
    array[8:28, 10:30] = (220, 30, 30)
    array[30:62, 28:60] = (30, 40, 220)
    array[30:62:4, 28:60] = 255
    boxes = torch.tensor([[10.0, 8, 30, 28], [28, 30, 60, 62]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "attributes": torch.tensor([[0, 0, 0], [1, 2, 1]])}
    pixels = torch.from_numpy(np.stack([array] * 2)).permute(0, 3, 1, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(140):
            optimizer.zero_grad()
            losses = network.losses(pixels, [target, target])
            sum(losses.values()).backward()
            optimizer.step()
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "class", "box", "size", "colour", "texture"}
    (found,) = Detector(network).detect([Image.fromarray(array)])
    order = np.argsort(found.boxes[:, 0])
    np.testing.assert_allclose(found.boxes[order] * 64, boxes, atol=4)  # a sixteenth of the image
    assert found.class_ids[order, 0].tolist() == [0, 2]
    assert found.attribute_ids[order].tolist() == [[0, 2, 5], [1, 4, 6]]


def test_an_unknown_attribute_has_no_loss():
    network = Detector.initialise(settings(), seed=0).network
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[10.0, 8, 30, 28]]),
        "labels": torch.tensor([1]),
        "attributes": torch.tensor([[0, -100, 1]]),
    }
    losses = network.train().losses(pixels, [target])
    assert losses["colour"] == 0 and losses["size"] > 0
    losses["colour"].backward()
    gradients = network.attribute_heads.groups[1].weight.grad
    assert gradients is not None and gradients.abs().sum() == 0


def test_the_shipped_detector_finds_and_names_the_objects_of_fresh_scenes():
    detector = load_scene_detector()
    options = SceneOptions(seed=77)
    worlds = [sample_world(options, split="heldout", index=index) for index in range(12)]
    found = detector.detect([render(world, options) for world in worlds])
    right = total = 0
    for world, regions in zip(worlds, found, strict=True):
        names = [
            tuple(detector.extractor.attributes[attribute] for attribute in row)
            for row in regions.attribute_ids.tolist()
        ]
        shapes = [detector.extractor.classes[label] for label in regions.class_ids[:, 0].tolist()]
        for item in world.objects:
            wanted = (item.size, item.colour, item.texture), item.shape
            distances = np.abs(regions.boxes * 160 - np.array(item.box)).max(axis=1)
            nearest = int(distances.argmin())
            right += distances[nearest] < 6 and (names[nearest], shapes[nearest]) == wanted
            total += 1
    assert right / total >= 0.85
