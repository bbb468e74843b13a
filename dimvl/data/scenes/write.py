"""Write scenes to a folder: images and annotation files in the exact formats of COCO and VQA v2.

Layout, with SPLIT one of train, heldout and compositional:

    scenes.json                 options, sizes of the splits, vocabulary, held-out combinations
    SPLIT/images/ID.png         the images
    SPLIT/instances.json        COCO instances; boxes cover whole objects, `area` the visible part
    SPLIT/captions.json         COCO captions
    SPLIT/questions.json        VQA v2 questions
    SPLIT/annotations.json      VQA v2 annotations
    SPLIT/worlds.jsonl          the ground truth, one scene per line

and, where the options ask for them, JSON lines of our own:

    SPLIT/statements.jsonl      statements about two or three of the images, true or false
    SPLIT/phrases.jsonl         phrases that describe one object, with its box
    SPLIT/noisy.jsonl           the captions, some of them made noisy, with the kind of noise of each
    SPLIT/stories.jsonl         stories, about images of their own: stories/images/ID.png, with stories/instances.json
                                and stories/worlds.jsonl
"""

import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.noise import corrupt
from dimvl.data.scenes.language import is_true, sample_captions
from dimvl.data.scenes.questions import Question, sample_questions
from dimvl.data.scenes.references import sample_references
from dimvl.data.scenes.render import render
from dimvl.data.scenes.statements import sample_statements
from dimvl.data.scenes.stories import Story, length, sample_story
from dimvl.data.scenes.word_changes import changed_caption, word_change_pairs
from dimvl.data.scenes.world import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    SceneObject,
    SceneOptions,
    World,
    outline,
    sample_world,
)
from dimvl.errors import UserError
from dimvl.files import atomic_path, read_json, read_text, write_json

_MORE_FILES = {  # the option that asks for each
    "statements.jsonl": "statements_per_image",
    "phrases.jsonl": "phrases_per_image",
    "noisy.jsonl": "noisy_captions",
    "stories.jsonl": "images_per_story",
}
_ANNOTATION_FILES = ("worlds.jsonl", "instances.json", "captions.json", "questions.json", "annotations.json")
_LICENSE = {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "name": "CC0 1.0 Universal"}
_ANSWERS = 10  # to every VQA v2 question
_PNG_END = b"IEND\xaeB`\x82"
_CHUNK = 16  # scenes sent to a worker at once


Item = TypeVar("Item")


class _Scene(NamedTuple):
    world: World
    captions: list[str]
    questions: list[Question]


def write_scenes(out: Path, options: SceneOptions, progress: Progress | None = None, workers: int = 1) -> None:
    """Write all splits; an interrupted call resumes when repeated and writes the same bytes.

    Args:
        out: folder to write, empty or with a part of the same scenes.
        options: what to write.
        progress: called with (images done, images in total).
        workers: number of processes.

    Raises:
        UserError: `out` has other contents or cannot be written.

    """
    _claim(out, _describe(options))
    counts = {split: getattr(options, split) for split in SPLITS}
    lengths = {split: [length(index) for index in range(options.stories(split))] for split in SPLITS}
    done, total = 0, sum(counts.values()) + sum(map(sum, lengths.values()))
    wanted = [*_ANNOTATION_FILES, *(name for name, option in _MORE_FILES.items() if getattr(options, option))]
    with ExitStack() as stack:
        map_scenes: Callable[..., Iterator[Any]] = map
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")))
            map_scenes = partial(pool.map, chunksize=_CHUNK)  # keeps the order, like map
        for split, count in counts.items():
            folder = out / split
            if not all((folder / name).is_file() for name in wanted):
                (folder / "images").mkdir(parents=True, exist_ok=True)
                scenes = []
                for scene in map_scenes(partial(_make_scene, folder, options, split), range(count)):
                    scenes.append(scene)
                    if progress:
                        progress(done + len(scenes), total)
                os.sync()  # the images; once is faster than one by one
                _write_annotations(folder, split, scenes, options)
                _write_for_other_tasks(folder, split, [scene.world for scene in scenes], options)
                if options.noisy_captions:
                    _write_noisy(folder, split, scenes, options)
                if options.images_per_story:
                    (folder / "stories" / "images").mkdir(parents=True, exist_ok=True)
                    stories, drawn = [], done + count
                    for story in map_scenes(partial(_make_story, folder, options, split), range(len(lengths[split]))):
                        stories.append(story)
                        drawn += len(story.worlds)
                        if progress:
                            progress(drawn, total)
                    os.sync()
                    _write_stories(folder, split, stories, options)
            done += count + sum(lengths[split])
            if progress:
                progress(done, total)


def read_worlds(path: Path) -> dict[int, World]:
    """Read a `worlds.jsonl`, by image id.

    Raises:
        UserError: the file is missing or was not written by `write_scenes`.

    """
    try:
        worlds = [World.from_json(json.loads(line)) for line in read_text(path).splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not contain scenes ({error}); write them again") from error
    return {world.image_id: world for world in worlds}


def _describe(options: SceneOptions) -> dict[str, Any]:
    asking = _MORE_FILES.values()
    return {
        "synthetic": True,
        "seed": options.seed,
        "options": {name: value for name, value in asdict(options).items() if value or name not in asking},
        "splits": {split: {"images": getattr(options, split)} for split in SPLITS},
        "held_out_combinations": [list(pair) for pair in HELD_OUT_COMBINATIONS],
        "vocabulary": {"shapes": [*SHAPES], "colours": [*COLOURS], "sizes": [*SIZES], "textures": [*TEXTURES]},
    }


def _claim(out: Path, description: dict[str, Any]) -> None:
    """Write scenes.json into an empty folder, or check that an existing one is the same."""
    claim = out / "scenes.json"
    if claim.exists():
        if read_json(claim) != description:
            raise UserError(f"{out} has scenes of another seed or other options; choose another folder or delete it")
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise UserError(f"{out} is not empty and has no scenes; choose another folder")
    else:
        write_json(claim, description)


def _make_scene(folder: Path, options: SceneOptions, split: str, index: int) -> _Scene:
    world = sample_world(options, split, index)
    _draw(world, folder, options)
    questions = sample_questions(world, options, compositional=split == "compositional")
    return _Scene(world, sample_captions(world, options), questions)


def _make_story(folder: Path, options: SceneOptions, split: str, index: int) -> Story:
    story = sample_story(options, split, index)
    for world in story.worlds:
        _draw(world, folder / "stories", options)
    return story


def _draw(world: World, folder: Path, options: SceneOptions) -> None:
    image = folder / "images" / _file_name(world)
    if not _is_whole(image):
        with atomic_path(image, flush=False) as temporary:  # run-length encoding is smaller and faster on noise
            render(world, options).save(temporary, format="PNG", compress_type=zlib.Z_RLE)


def _is_whole(image: Path) -> bool:
    """Return whether an image was written to its end, which it may not be if the machine stopped."""
    return image.exists() and image.read_bytes().endswith(_PNG_END)


def _file_name(world: World) -> str:
    return f"{world.image_id:012d}.png"


def _write_annotations(folder: Path, split: str, scenes: list[_Scene], options: SceneOptions) -> None:
    worlds = [scene.world for scene in scenes]
    coco = _coco(worlds, split, options)
    vqa = {"info": coco["info"], "license": _LICENSE, "data_type": "synthetic", "data_subtype": split}
    captions = [
        {"image_id": world.image_id, "id": world.image_id * 10 + number, "caption": caption}
        for world, texts, _ in scenes
        for number, caption in enumerate(texts)
    ]
    asked = [
        (world.image_id, world.image_id * 1000 + number, question)
        for world, _, questions in scenes
        for number, question in enumerate(questions)
    ]
    questions = [{"image_id": image, "question": question.text, "question_id": key} for image, key, question in asked]
    annotations = [_vqa_annotation(*record) for record in asked]
    _write_worlds(folder, worlds, coco)
    write_json(folder / "captions.json", {**coco, "annotations": captions}, indent=None)
    write_json(folder / "questions.json", {**vqa, "task_type": "Open-Ended", "questions": questions}, indent=None)
    write_json(folder / "annotations.json", {**vqa, "annotations": annotations}, indent=None)


def _write_for_other_tasks(folder: Path, split: str, worlds: Sequence[World], options: SceneOptions) -> None:
    """Write statements and phrases, if the options ask for them."""
    if options.statements_per_image:
        of_images = [sample_statements(worlds, place, options) for place in range(len(worlds))]
        statements = _numbered(worlds, of_images)
        labelled = [
            {"id": key, "images": each.images, "text": each.text, "label": str(each.label).lower(), "kind": each.kind}
            for key, each in statements
        ]
        _write_lines(folder / "statements.jsonl", labelled)
    if options.phrases_per_image:
        references = _numbered(worlds, [sample_references(world, options) for world in worlds])
        described = [
            {"id": key, "image": key // 1000, "phrase": each.text, "boxes": [each.item.box], "kind": each.kind}
            for key, each in references
        ]
        _write_lines(folder / "phrases.jsonl", described)


def _write_noisy(folder: Path, split: str, scenes: Sequence[_Scene], options: SceneOptions) -> None:
    """Write the captions, some of them noisy; noise that is true of its scene is not used."""
    worlds = [world for world, texts, _ in scenes for _ in texts]
    texts = [text for scene in scenes for text in scene.captions]
    pairs = word_change_pairs("train")
    made = corrupt(
        [world.image_id for world in worlds],
        texts,
        options.noisy_captions,
        *(options.seed, split),
        change=lambda place, generator: changed_caption(texts[place], worlds[place], generator, pairs),
        fits=lambda place, text: is_true(text, worlds[place]),
    )
    lines = [
        {"image": world.image_id, "caption": noisy.text, "noise": noisy.kind}
        for world, noisy in zip(worlds, made, strict=True)
    ]
    _write_lines(folder / "noisy.jsonl", lines)


def _numbered(worlds: Sequence[World], of_images: Sequence[Sequence[Item]]) -> list[tuple[int, Item]]:
    """Return what was written about each image, with ids."""
    pairs = zip(worlds, of_images, strict=True)
    return [(world.image_id * 1000 + number, item) for world, items in pairs for number, item in enumerate(items)]


def _write_stories(folder: Path, split: str, stories: Sequence[Story], options: SceneOptions) -> None:
    worlds = [world for story in stories for world in story.worlds]
    _write_worlds(folder / "stories", worlds, _coco(worlds, split, options))
    told = [
        {
            "id": story.worlds[0].image_id,
            "images": [world.image_id for world in story.worlds],
            "caption": " ".join(f"{sentence}." for sentence in story.sentences),
        }
        for story in stories
    ]
    _write_lines(folder / "stories.jsonl", told)


def _write_worlds(folder: Path, worlds: Sequence[World], coco: dict[str, Any]) -> None:
    """Write scenes and their boxes."""
    categories = [{"supercategory": "shape", "id": number, "name": name} for number, name in enumerate(SHAPES, 1)]
    instances = [box for world in worlds for box in _coco_boxes(world)]
    _write_lines(folder / "worlds.jsonl", [world.to_json() for world in worlds])
    write_json(folder / "instances.json", {**coco, "annotations": instances, "categories": categories}, indent=None)


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _coco(worlds: Sequence[World], split: str, options: SceneOptions) -> dict[str, Any]:
    """Return what all files of COCO's format begin with."""
    description = f"dimvl synthetic scenes, seed {options.seed}, {split}"
    info = {"description": description, "url": "", "version": "1.0", "year": 2026, "contributor": "dimvl"}
    info["date_created"] = ""
    return {"info": info, "licenses": [{**_LICENSE, "id": 1}], "images": list(map(_coco_image, worlds))}


def _coco_image(world: World) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": _file_name(world),
        "coco_url": "",
        "height": world.height,
        "width": world.width,
        "date_captured": "",
        "flickr_url": "",
        "id": world.image_id,
    }


def _coco_boxes(world: World) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(world.objects):
        x1, y1, x2, y2 = item.box
        yield {
            "id": world.image_id * 10 + number,
            "image_id": world.image_id,
            "category_id": SHAPES.index(item.shape) + 1,
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "area": round(_area(item) * item.visible, 2),
            "iscrowd": 0,
            "attributes": [item.size, item.colour, item.texture],
        }


def _area(item: SceneObject) -> float:
    """Return the area of the outline in square pixels, by the shoelace formula."""
    points = outline(item.shape, item.centre, item.extent, item.tilt)
    return abs(sum(float(np.linalg.det(np.stack(edge))) for edge in pairwise([*points, points[0]]))) / 2


def _vqa_annotation(image_id: int, question_id: int, question: Question) -> dict[str, Any]:
    return {
        "question_type": question.kind,
        "multiple_choice_answer": question.answer,
        "answers": [
            {"answer": question.answer, "answer_confidence": "yes", "answer_id": number}
            for number in range(1, _ANSWERS + 1)
        ],
        "image_id": image_id,
        "answer_type": question.answer_type,
        "question_id": question_id,
    }
