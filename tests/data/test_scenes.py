"""Worlds, images and files of synthetic scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.data.scenes import (
    COLOURS,
    SHAPES,
    SPLITS,
    SceneOptions,
    World,
    read_worlds,
    render,
    sample_world,
    write,
    write_scenes,
)
from dimvl.data.scenes.world import HELD_OUT_COMBINATIONS, SceneObject, outline
from dimvl.errors import UserError

OPTIONS = SceneOptions(seed=7, train=4, heldout=2, compositional=2)


def one_object(shape: str, texture: str = "plain", extent: float = 44.0, tilt: float = 9.0) -> World:
    points = outline(shape, (80.0, 60.5), extent, tilt)
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    return World(1, 160, 160, (SceneObject(shape, "blue", "large", texture, (80.0, 60.5), extent, tilt, box),))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_worlds_and_pixels_and_another_seed_gives_others():
    for split in (*SPLITS, "detector"):
        first, second = (sample_world(OPTIONS, split, 3) for _ in range(2))
        assert first == second
        assert render(first, OPTIONS).tobytes() == render(second, OPTIONS).tobytes()
        assert sample_world(SceneOptions(seed=8), split, 3).objects != first.objects


def test_no_two_images_of_any_split_share_an_id_or_a_world():
    worlds = [sample_world(OPTIONS, split, index) for split in (*SPLITS, "detector") for index in range(40)]
    assert len({world.image_id for world in worlds}) == len(worlds)
    assert len({world.objects for world in worlds}) == len(worlds)


def test_held_out_combinations_are_in_every_compositional_scene_and_nowhere_else():
    for index in range(150):
        for split in ("train", "heldout", "detector", "compositional"):
            held_out = [item.is_held_out for item in sample_world(OPTIONS, split, index).objects]
            assert any(held_out) == (split == "compositional")


def test_every_shape_and_colour_is_frequent_in_training():
    items = [item for index in range(200) for item in sample_world(OPTIONS, "train", index).objects]
    assert len(HELD_OUT_COMBINATIONS) == 5
    for values, attribute in ((SHAPES, "shape"), (tuple(COLOURS), "colour")):
        for value in values:
            share = np.mean([getattr(item, attribute) == value for item in items])
            assert share > 0.6 / len(values)


def test_worlds_obey_the_options():
    options = SceneOptions(seed=1, image_size=200, min_objects=3, max_objects=4, max_overlap=0.2)
    worlds = [sample_world(options, "train", index) for index in range(60)]
    assert {len(world.objects) for world in worlds} == {3, 4}
    items = [item for world in worlds for item in world.objects]
    assert 0.8 <= min(item.visible for item in items) < 1  # occlusion occurs, and is bounded
    assert all(item.box[0] >= 0 and item.box[1] >= 0 and max(item.box[2:]) <= 200 for item in items)
    small = max(item.extent for item in items if item.size == "small")
    assert small * 1.3 < min(item.extent for item in items if item.size == "large")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_of_an_object_fits_its_pixels_to_one_pixel(shape):
    world = one_object(shape)
    image = np.asarray(render(world, SceneOptions(noise=0, clutter=0)), dtype=int)
    drawn = np.abs(image - image[0, 0]).max(axis=2) > 20
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)  # smooth edges can move it by a pixel
    assert np.abs(np.subtract(found, world.objects[0].box)).max() <= 1.01


def test_a_texture_changes_only_pixels_inside_the_shape():
    quiet = SceneOptions(noise=0, clutter=0)
    plain = np.asarray(render(one_object("circle"), quiet), dtype=int)
    x1, y1, x2, y2 = (round(value) for value in one_object("circle").objects[0].box)
    for texture in ("striped", "dotted"):
        changed = np.abs(np.asarray(render(one_object("circle", texture), quiet), dtype=int) - plain).max(axis=2) > 30
        assert changed[y1:y2, x1:x2].mean() > 0.1
        changed[y1:y2, x1:x2] = False
        assert not changed.any()


def test_later_objects_are_drawn_over_earlier_ones():
    below, above = one_object("square").objects[0], one_object("circle", extent=24.0).objects[0]
    above = SceneObject(**{**vars(above), "colour": "yellow"})
    image = render(World(1, 160, 160, (below, above)), SceneOptions(noise=0, clutter=0))
    assert np.abs(np.subtract(image.getpixel((80, 60)), COLOURS["yellow"])).max() <= 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 100), ("max_objects", 1), ("max_overlap", 0.9), ("seed", -1), ("captions_per_image", 0)],
)
def test_the_error_for_an_option_out_of_range_names_the_range(name, value):
    with pytest.raises(UserError, match=rf"{name} is {value}; give a value from"):
        SceneOptions(**{name: value})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "out"
    write_scenes(folder, OPTIONS)
    return folder


def test_files_have_the_keys_of_coco_and_vqa(written):
    for split in SPLITS:
        parts = {path.stem: json.loads(path.read_text()) for path in (written / split).glob("*.json")}
        assert set(parts) == {"instances", "captions", "questions", "annotations"}
        assert set(parts["instances"]) == {"info", "licenses", "images", "annotations", "categories"}
        assert set(parts["captions"]) == {"info", "licenses", "images", "annotations"}
        assert set(parts["captions"]["annotations"][0]) == {"image_id", "id", "caption"}
        vqa = {"info", "data_type", "data_subtype", "license"}
        assert set(parts["questions"]) == vqa | {"task_type", "questions"}
        assert parts["questions"]["task_type"] == "Open-Ended"
        assert set(parts["questions"]["questions"][0]) == {"image_id", "question", "question_id"}
        assert set(parts["annotations"]) == vqa | {"annotations"}
        for record in parts["annotations"]["annotations"]:
            assert set(record) == {
                *("question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"),
            }
            assert [answer["answer_id"] for answer in record["answers"]] == list(range(1, 11))
            assert {answer["answer"] for answer in record["answers"]} == {record["multiple_choice_answer"]}


def test_files_agree_with_the_worlds_and_images(written):
    for split in SPLITS:
        folder = written / split
        worlds = read_worlds(folder / "worlds.jsonl")
        instances = json.loads((folder / "instances.json").read_text())
        assert {image["id"] for image in instances["images"]} == set(worlds)
        assert list(worlds.values()) == [
            sample_world(OPTIONS, split, index) for index in range(getattr(OPTIONS, split))
        ]
        for image in instances["images"]:
            with Image.open(folder / "images" / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                assert opened.tobytes() == render(worlds[image["id"]], OPTIONS).tobytes()
        names = {category["id"]: category["name"] for category in instances["categories"]}
        boxes = [(a["image_id"], names[a["category_id"]], *a["attributes"]) for a in instances["annotations"]]
        assert boxes == [
            (world.image_id, item.shape, item.size, item.colour, item.texture)
            for world in worlds.values()
            for item in world.objects
        ]
        counts = {
            name: len(json.loads((folder / f"{name}.json").read_text())[key])
            for name, key in (("captions", "annotations"), ("questions", "questions"), ("annotations", "annotations"))
        }
        assert counts == {"captions": 5 * len(worlds), "questions": 10 * len(worlds), "annotations": 10 * len(worlds)}


def test_a_square_has_the_area_of_a_square():
    world = one_object("square", extent=40.0, tilt=0.0)
    (box,) = write._coco_boxes(world)
    assert box["area"] == pytest.approx(1600)
    assert box["bbox"] == pytest.approx([60, 40.5, 40, 40])


def test_an_interrupted_write_resumes_and_gives_the_same_files(written, tmp_path):
    done = []

    def stop_in_the_heldout_split(images: int, total: int) -> None:
        done.append((images, total))
        if images == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", OPTIONS, stop_in_the_heldout_split)
    assert done[-1] == (5, 8)
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files_of(tmp_path / "out")}
    assert any(name.startswith("heldout") for name in kept) and "heldout/captions.json" not in kept
    cut = next(name for name in kept if name.startswith("heldout/images"))  # as a machine that stopped leaves it
    (tmp_path / "out" / cut).write_bytes((tmp_path / "out" / cut).read_bytes()[:-20])
    del kept[cut]
    write_scenes(tmp_path / "out", OPTIONS)
    assert files_of(tmp_path / "out") == files_of(written)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_two_workers_write_the_same_files_as_one(written, tmp_path):
    write_scenes(tmp_path / "out", OPTIONS, workers=2)
    assert files_of(tmp_path / "out") == files_of(written)


def test_a_folder_with_other_scenes_or_files_is_refused_and_unchanged(written, tmp_path):
    before = files_of(written)
    with pytest.raises(UserError, match="another seed or other options"):
        write_scenes(written, SceneOptions(seed=8, train=4, heldout=2, compositional=2))
    assert files_of(written) == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_scenes(tmp_path, OPTIONS)
    assert list(files_of(tmp_path)) == ["letter.txt"]


def test_the_error_for_unreadable_worlds_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"worlds\.jsonl does not exist"):
        read_worlds(tmp_path / "worlds.jsonl")
    (tmp_path / "worlds.jsonl").write_text('{"image_id": 3}\n')
    with pytest.raises(UserError, match="does not contain scenes"):
        read_worlds(tmp_path / "worlds.jsonl")
