"""What is fuzzed: folders of every kind, and for each file the stage that reads it.

A stage returns a value that depends on all that it read. `SEALED` files have checksums, so that a change of them which
leaves the checksums as they were must not give another result.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dimvl.checkpoints import (
    OPTIMISER,
    WEIGHTS,
    check_checkpoint,
    latest_checkpoint,
    origin_of,
    read_log,
    run_arguments,
)
from dimvl.config import RunConfig
from dimvl.config.reading import read_run
from dimvl.data.annotations import read_captions, read_questions
from dimvl.data.matching import match_file
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.files import sealed_line
from dimvl.metrics.predictions import read_answers
from dimvl.predictor import Predictor
from dimvl.regions.images import load_image
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.check import verify_store
from dimvl.tasks.answering.prediction import answer_questions
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from dimvl.training.state import read_state, shapes_of
from dimvl.training.texts import known_texts
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.tiny_runs import TinyData, make_config, make_data

Stage = Callable[[Path], Any]
QUESTION = "is there a small red circle?"


@dataclass(frozen=True)
class Subject:
    """A folder and the stages that read it.

    Attributes:
        name: for the table.
        folder: a sound one; trials change copies.
        stages: pattern of the path of a file -> the stages that read it, of which a trial takes one.
        sealed: patterns of the files that have checksums.

    """

    name: str
    folder: Path
    stages: dict[str, tuple[Stage, ...]]
    sealed: tuple[str, ...] = ()
    files: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """List the files that some stage reads."""
        every = (path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*")) if path.is_file())
        object.__setattr__(self, "files", [name for name in every if self.stages_of(name)])

    def stages_of(self, name: str) -> tuple[Stage, ...]:
        """Return the stages that read a file."""
        return next((stages for pattern, stages in self.stages.items() if fnmatch(name, pattern)), ())

    def is_sealed(self, name: str) -> bool:
        """Return whether a file has a checksum."""
        return any(fnmatch(name, pattern) for pattern in self.sealed)


def make_subjects(folder: Path) -> list[Subject]:
    """Write a sound folder of each kind."""
    data = make_data(folder / "data", 8, empty=3)
    return [
        _export(folder),
        _run(folder, data),
        Subject("store", data.regions, {"*": (_read_store, _verify)}, ("*",)),
        _configurations(folder, data),
        _annotations(folder, data),
        _images(folder),
    ]


# --- exports


def _export(folder: Path) -> Subject:
    detector = make_detector()
    detector.save(folder / "detector")
    run = write_run(folder / "untrained", make_trained(all_abilities(detector.extractor)))
    out = export(run, folder / "export", folder / "detector")
    make_image().save(folder / "image.png")
    image = folder / "image.png"
    regions = Predictor.from_pretrained(out, "cpu").regions(image)

    def from_regions(place: Path) -> Any:
        return _predict(place, regions)

    def from_image(place: Path) -> Any:
        return _predict(place, image)

    stages = {"detector/*": (from_image,), "README.md": (), "*": (from_regions,)}
    return Subject("export", out, stages, ("*",))


def _predict(folder: Path, image: Path | Regions) -> Any:
    predictor = Predictor.from_pretrained(folder, "cpu")
    answer, match = predictor.answer(image, QUESTION), predictor.match(image, QUESTION)
    return repr((answer, match, predictor.caption(image, beams=1), predictor.trained.trained_on, origin_of(folder)))


# --- runs


def _run(folder: Path, data: TinyData) -> Subject:
    training = {"steps": 4, "save_every": 2, "keep": 2}
    config = make_config(data, folder / "run", "vqa", training=training)
    run = run_training(config)
    line = {"steps": 4, "epoch": 0, "loss": 2.25, "losses": {"answers": 2.25}, "counts": {"answers": 8}, "rate": 0.01}
    (run / "log.jsonl").write_text("".join(sealed_line({"step": step, **line}) for step in range(1, 5)))
    store = RegionStore(data.regions)
    questions, shapes = read_questions(data.questions)[:1], shapes_of(load_model(run).model)

    def predict(place: Path) -> Any:
        trained = load_model(place)
        answers = answer_questions(trained.without_guard(), store, questions)
        described = run_arguments(place)
        return repr((answers, trained.trained_on, json.dumps(described, sort_keys=True)))

    def texts(place: Path) -> Any:
        found = known_texts(config.model_copy(update={"output": place}))
        if found is None:
            raise UserError("the texts are written again")
        arrays = {name: getattr(found, name) for name in (*found.ARRAYS, *found.GROUP_ARRAYS)}
        return repr({name: None if array is None else array.tobytes() for name, array in arrays.items()}) + repr(
            found.positions_in(store).tolist()
        )

    def resume(place: Path) -> Any:
        newest = latest_checkpoint(place)
        if newest is None:
            return None
        state = check_checkpoint(newest)
        found = read_state(newest, shapes)
        return repr((state, found.steps, {name: value.numpy().tobytes() for name, value in found.optimiser.items()}))

    def again(place: Path) -> Any:
        run_training(config.model_copy(update={"output": place}))
        newest = latest_checkpoint(place)
        return newest and (newest.name, (newest / WEIGHTS).read_bytes(), (newest / OPTIMISER).read_bytes())

    stages = {
        "log.jsonl": (lambda place: read_log(place / "log.jsonl"),),
        "texts/*": (texts, again),
        "texts.json": (texts, again),
        "trained_on.npy": (texts, predict, again),
        "checkpoints/step-00000002/*": (),
        "*/state.json": (predict, resume, again),
        f"*/{OPTIMISER}": (resume, again),
        "match.json": (),
        "*": (predict, again),
    }
    return Subject("run", run, stages, ("*",))


# --- stores


def _read_store(place: Path) -> Any:
    store = RegionStore(place, check=True)
    ids = [store.image_id(position) for position in range(len(store))]
    found = [store.read(position) for position in store.positions(ids).tolist()]
    return repr([[np.asarray(value).tobytes() for value in vars(regions).values()] for regions in found]) + repr(ids)


def _verify(place: Path) -> Any:
    if problems := verify_store(place):
        raise UserError("; ".join(problems))
    return len(RegionStore(place))


# --- configurations, annotations, images


def _configurations(folder: Path, data: TinyData) -> Subject:
    place = folder / "configurations"
    place.mkdir()
    kinds: dict[str, type[RunConfig]] = {}
    for task in ("pretrain", "vqa", "caption"):
        config = make_config(data, place / "run", task)
        kinds[task], values = type(config), config.model_dump(mode="json", exclude_defaults=True)
        common = {key: values.pop(key) for key in ("inputs", "model")}
        (place / f"{task}.yaml").write_text(yaml.safe_dump({"include": ["base.yaml"], "task": task, **values}))
    (place / "base.yaml").write_text(yaml.safe_dump(common))

    def read(name: str) -> Stage:
        return lambda place: repr(read_run(place / name, kinds).model_dump())

    stages = {name: (read(name),) for name in ("pretrain.yaml", "vqa.yaml", "caption.yaml")}
    return Subject("configuration", place, {**stages, "base.yaml": (read("vqa.yaml"),)})


def _annotations(folder: Path, data: TinyData) -> Subject:
    place = folder / "annotations"
    place.mkdir()
    captions, questions = read_captions(data.captions), read_questions(data.questions)
    for source in (data.captions, data.questions, data.annotations):
        (place / source.name).write_bytes(source.read_bytes())
    lines = [{"images": [*caption.image_ids], "caption": caption.text} for caption in captions]
    (place / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"images": [*q.image_ids], "question": q.text, "answers": ["yes"]} for q in questions]
    (place / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sentences = [{"raw": caption.text, "imgid": 0, "sentid": n} for n, caption in enumerate(captions[:3])]
    karpathy = {"filename": "1.jpg", "imgid": 1, "split": "train", "sentids": [0, 1, 2], "sentences": sentences}
    (place / "karpathy.json").write_text(json.dumps({"images": [karpathy], "dataset": "own"}))
    answers = [{"question_id": question.question_id, "answer": "yes"} for question in questions]
    (place / "predictions.json").write_text(json.dumps(answers))
    store, config = RegionStore(data.regions), make_config(data, folder / "none", "vqa")
    wanted = [question.question_id for question in questions]

    def matched(path: Path, records: Any) -> Any:
        return repr((records, match_file(path, records, store, config.inputs)))

    def caption_file(name: str, split: tuple[str, ...] = ()) -> tuple[Stage, ...]:
        return (lambda place: matched(place / name, read_captions(place / name, split)),)

    def vqa(place: Path) -> Any:
        return matched(place / "q.json", read_questions(place / "q.json", place / "a.json"))

    stages = {
        "c.json": caption_file("c.json"),
        "captions.jsonl": caption_file("captions.jsonl"),
        "karpathy.json": caption_file("karpathy.json", ("train",)),
        "questions.jsonl": (
            lambda place: matched(place / "questions.jsonl", read_questions(place / "questions.jsonl")),
        ),
        "predictions.json": (lambda place: repr(read_answers(place / "predictions.json", wanted)),),
        "*": (vqa,),
    }
    return Subject("annotations", place, stages)


def _images(folder: Path) -> Subject:
    place = folder / "images"
    place.mkdir()
    for ending in ("png", "jpg", "webp", "bmp", "gif", "tiff"):
        image = make_image(3, 40, 30)
        image.save(place / f"image.{ending}", exif=Image.Exif())
    generator = random.Random(0)
    Image.frombytes("I;16", (20, 15), generator.randbytes(600)).save(place / "deep.png")

    def read(name: str) -> tuple[Stage, ...]:
        return (lambda place: repr((load_image(place / name).size, load_image(place / name).tobytes())),)

    return Subject("images", place, {path.name: read(path.name) for path in sorted(place.iterdir())})
