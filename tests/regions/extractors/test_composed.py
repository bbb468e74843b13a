from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dimvl.errors import UserError
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.backbones.pooling import pool, pool_cells
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extract import extract
from dimvl.regions.extractors.composed import ComposedExtractor
from dimvl.regions.extractors.grid import Grid
from dimvl.regions.extractors.load import load_extractor
from dimvl.regions.naming.concepts import ConceptNamer, ConceptNetwork, Source
from dimvl.regions.records import Detections, Extractor
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.exports import make_detector, make_image

WORDS = ("dog", "run", "red", "grass", "man", "sky", "ball")
BOXES = np.array([[0.1, 0.2, 0.5, 0.9], [0, 0, 0.3, 0.3]], np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a backbone, concepts for its features, a detector and images."""
    place = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    import_torchvision()
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=48, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(place / "vit")
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(place / "vit")
    (place / "detector").mkdir()
    make_detector().save(place / "detector")
    extractor = load_extractor("grid", features=place / "vit").extractor
    network = ConceptNetwork(8, len(WORDS), "noisy_or")
    torch.nn.init.normal_(network.word.weight)
    ConceptNamer(network, WORDS, ("noun",) * len(WORDS), Source.of(extractor)).save(place / "concepts")
    (place / "images").mkdir()
    for seed in range(3):
        make_image(seed, 60 + 9 * seed, 50).save(place / "images" / f"{seed}.png")
    return place


def opened(place: Path, where: str | Path = "grid", **more: object) -> ComposedExtractor:
    found = load_extractor(where, **{"features": place / "vit", **more})  # type: ignore[arg-type]
    assert isinstance(found, ComposedExtractor)
    return found


def equal(one: Detections, other: Detections) -> bool:
    return all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)


def test_a_grid_gives_its_cells_row_by_row_then_the_whole_image(place: Path) -> None:
    backbone, image = load_backbone(str(place / "vit")), make_image()
    found = opened(place, options={"grid": 3}).detect([image])[0]
    assert found.boxes[:10] == pytest.approx(
        np.array([[x / 3, y / 3, (x + 1) / 3, (y + 1) / 3] for y in range(3) for x in range(3)] + [[0, 0, 1, 1]])
    )
    maps = backbone.feature_map(np.stack([backbone.prepare(image)]))
    expected = torch.cat([pool_cells(maps, 3)[0], maps.mean((2, 3))]).half()
    assert np.array_equal(found.features, expected.numpy()) and found.features.dtype == np.float16
    assert found.class_ids.shape == (10, 0)


def test_given_boxes_come_before_the_cells_and_change_nothing_about_them(place: Path) -> None:
    image, extractor = make_image(), opened(place, options={"grid": 2})
    alone, beside = extractor.detect([image])[0], extractor.detect([image], [BOXES])[0]
    assert np.array_equal(beside.boxes[:2], BOXES) and np.array_equal(beside.features[2:], alone.features)
    backbone = load_backbone(str(place / "vit"))
    maps = backbone.feature_map(np.stack([backbone.prepare(image)]))
    assert np.array_equal(beside.features[:2], pool(maps, [torch.from_numpy(BOXES)])[0].half().numpy())
    boxes_only = opened(place, "boxes")
    assert equal(boxes_only.detect([image], [BOXES])[0], replace_rows(beside, slice(0, 2)))
    assert len(boxes_only.detect([image], [BOXES[:0]])[0]) == 1, "an image without boxes is one region"


def replace_rows(found: Detections, rows: slice) -> Detections:
    return replace(found, **{name: array[rows] for name, array in found.arrays.items()})


def test_a_detector_keeps_boxes_and_classes_and_gets_the_features_of_the_backbone(place: Path) -> None:
    image = make_image()
    plain = load_extractor(place / "detector").detect([image])[0]
    found = opened(place, place / "detector").detect([image])[0]
    assert found.features.shape == (len(plain), 8)
    assert equal(replace(found, features=plain.features), plain)


def test_concepts_are_classes_of_a_grid_and_attributes_beside_other_classes(place: Path) -> None:
    image, concepts = make_image(), place / "concepts"
    grid = opened(place, concepts=concepts)
    found = grid.detect([image])[0]
    assert grid.extractor.classes == WORDS and found.class_ids.shape == (50, 5)
    assert (np.diff(found.class_scores.astype(float)) <= 0).all()
    detector = opened(place, place / "detector", concepts=concepts)
    assert detector.extractor.attributes == WORDS and detector.extractor.classes == make_detector().classes
    named = detector.detect([image])[0]
    assert named.attribute_ids.shape == (len(named), 5)
    given = GivenBoxes(
        boxes={"a": BOXES}, labels={"a": np.array([1, 0], np.int16)}, scores={"a": np.ones(2)}, classes=("x", "y")
    )
    assert given.extractor(grid).classes == ("x", "y") and given.extractor(grid).attributes == WORDS
    drawn = given.named("a", grid.detect([image], [BOXES])[0], grid)
    assert drawn.class_ids[:3].tolist() == [[1], [0], [-1]] and drawn.attribute_ids.shape == (52, 5)
    assert np.array_equal(drawn.attribute_ids[2:], found.class_ids)


@pytest.mark.parametrize("where", ["grid", "detector"])
def test_what_is_saved_and_loaded_is_the_same_extractor(place: Path, tmp_path: Path, where: str) -> None:
    name = where if where == "grid" else place / where
    made = opened(place, name, concepts=place / "concepts", options={"grid": 4} if where == "grid" else {})
    (tmp_path / "saved").mkdir()
    made.save(tmp_path / "saved")
    loaded = load_extractor(tmp_path / "saved")
    assert loaded.extractor == made.extractor
    image = make_image(3)
    assert equal(loaded.detect([image])[0], made.detect([image])[0])


def test_each_part_changes_the_fingerprint_and_the_grid_does_not(place: Path) -> None:
    parts = {
        "grid": opened(place).extractor,
        "detector": opened(place, place / "detector").extractor,
        "named": opened(place, concepts=place / "concepts").extractor,
        "alone": load_extractor(place / "detector").extractor,
    }
    assert len({extractor.fingerprint for extractor in parts.values()}) == 4
    finer = opened(place, options={"grid": 2}).extractor
    assert finer.conflict(parts["grid"]) is None and finer.deviations(parts["grid"]) == ["grid 7, not 2"]
    larger = opened(place, options={"features_side": 64}).extractor
    assert larger.conflict(parts["grid"]) == "features_side 48, not 64"
    assert parts["named"].conflict(parts["grid"]) == "its regions were named by another model, or by none"
    assert not parts["grid"].differs_in_names(parts["detector"])
    assert parts["named"] == parts["grid"].named(WORDS, parts["named"].parts["called"])


def test_a_store_names_what_made_it_and_its_regions_do_not_depend_on_the_batch(place: Path, tmp_path: Path) -> None:
    made = opened(place, concepts=place / "concepts")
    with RegionStoreWriter(tmp_path / "store", made.extractor) as writer:
        extract([(file.stem, file) for file in sorted((place / "images").iterdir())], made, writer, batch_size=2)
    store = RegionStore(tmp_path / "store")
    kept: Extractor = store.extractor
    assert load_extractor(**kept.recipe).extractor == kept == made.extractor  # type: ignore[arg-type]
    image = make_image(1, 69, 50)
    assert equal(store.read(store.position("1")), made.detect([image])[0]), (
        "an image does not depend on those beside it"
    )


def test_parts_that_do_not_fit_are_named(place: Path) -> None:
    for where in ("grid", "boxes"):
        with pytest.raises(UserError, match="have no features of their own; give a backbone"):
            load_extractor(where, concepts=place / "concepts")
    with pytest.raises(UserError, match=r"features_side 64, not 48.* train concepts on a store of this extractor"):
        opened(place, concepts=place / "concepts", options={"features_side": 64})
    with pytest.raises(UserError, match="has no setting nms_threshold; it has features_side, grid, whole_image"):
        opened(place, options={"nms_threshold": 0.5})
    with pytest.raises(UserError, match=r"weights some\.pth belong to no backbone; give its name as --features"):
        load_extractor("scenes", features_weights="some.pth")
    for cells in (65, 1.5, True):
        with pytest.raises(UserError, match=r"grid is .*; give a whole number from 1 to 64"):
            Grid(cells=cells)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["grid", "detector"])
def test_an_image_smaller_than_a_cell_has_the_regions_of_any_other(place: Path, where: str) -> None:
    found = load_extractor("grid", {"grid": 7}, features=place / "vit") if where == "grid" else make_detector()
    for size in ((1, 1), (3, 500), (500, 3)):
        (seen,) = found.detect_prepared([found.prepare(make_image(1).resize(size))])
        assert len(seen.boxes) == 50 if where == "grid" else len(seen.boxes)
        assert np.isfinite(seen.features).all() and ((seen.boxes >= 0) & (seen.boxes <= 1)).all()
