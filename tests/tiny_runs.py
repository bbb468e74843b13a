"""A tiny synthetic data set on disk, and configurations that train on it in well under a second."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dimvl.config import RunConfig
from dimvl.data.annotations import read_captions
from dimvl.data.epoch_plan import ExampleSource
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore, text_store
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import FeatureDtype
from dimvl.tasks import CONFIGS
from tests.factories import make_processor, make_store

WORDS = ("a", "small", "large", "red", "blue", "circle", "square", "star", "is", "above", "below", "two")
MODEL = {"layers": 1, "width": 16, "heads": 2, "inner_width": 32, "dropout": 0.1}
TRAINING = {"steps": 6, "rows_per_step": 200, "rows_per_micro_batch": 80, "learning_rate": 1e-2}
TRAINING |= {"log_every": 1, "keep": 1}


@dataclass(frozen=True)
class TinyData:
    """Paths of a region store, captions, questions and annotations of images "1", "2", ..."""

    regions: Path
    captions: Path
    questions: Path
    annotations: Path


def random_text(generator: np.random.Generator, least: int = 3, most: int = 9) -> str:
    return " ".join(generator.choice(WORDS, size=int(generator.integers(least, most))))


def make_data(
    folder: Path,
    images: int = 6,
    captions: int = 3,
    empty: int | None = None,
    feature_dtype: FeatureDtype = "float16",
) -> TinyData:
    """Images with 1 to `captions` captions and two questions each; the one of number `empty` has no regions."""
    generator = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    regions = make_store(folder / "regions", images, empty, feature_dtype)
    data = TinyData(regions, *(folder / f"{name}.json" for name in "cqa"))
    caption_records, question_records, answer_records = [], [], []
    for image in range(1, images + 1):
        caption_records += [
            {"id": 100 * image + number, "image_id": image, "caption": random_text(generator)}
            for number in range(1 + image % captions)
        ]
        for number in range(2):
            question, (answer, other, *_) = 10 * image + number, np.roll(["yes", "no", "red"], image + number).tolist()
            question_records.append(
                {"question_id": question, "image_id": image, "question": random_text(generator) + "?"}
            )
            people = [{"answer": answer}] * 8 + [{"answer": other}] * 2
            answer_records.append(
                {"question_id": question, "image_id": image, "answers": people, "answer_type": "other"}
            )
    data.captions.write_text(json.dumps({"annotations": caption_records}))
    data.questions.write_text(json.dumps({"questions": question_records}))
    data.annotations.write_text(json.dumps({"annotations": answer_records}))
    return data


def make_several(data: TinyData, images: int = 6, times: bool = False) -> TinyData:
    """Captions and questions, as JSON lines, about 1 to 4 images each, of which some share images."""
    generator = np.random.default_rng(6)
    caption_records, question_records = [], []
    for number in range(2 * images):
        chosen = (generator.permutation(images)[: 1 + number % 4] + 1).tolist()
        record = {"images": chosen} | ({"times": [2.5 * place for place in range(len(chosen))]} if times else {})
        caption_records += [record | {"caption": random_text(generator)} for _ in range(1 + number % 3)]
        question_records.append(record | {"question": random_text(generator), "answers": ["yes", "no"][number % 2 :]})
    several = replace(
        data, captions=data.captions.with_suffix(".jsonl"), questions=data.questions.with_suffix(".jsonl")
    )
    several.captions.write_text("".join(json.dumps(record) + "\n" for record in caption_records))
    several.questions.write_text("".join(json.dumps(record) + "\n" for record in question_records))
    return several


def make_config(data: TinyData, output: Path, task: str = "pretrain", **changes: object) -> RunConfig:
    """A run of a few steps; `changes` are top-level keys, and mappings are merged into the defaults."""
    content: dict = {"task": task, "output": output, "regions": data.regions, "seed": 3}
    content |= {"inputs": {"max_regions": 10, "concept_tokens": 8, "text_tokens": 12, "vocabulary": 100}}
    content |= {"model": MODEL, "training": TRAINING}
    if task == "ground":
        content |= {"phrases": changes.pop("phrases")}
    elif task == "vqa":
        content |= {"questions": data.questions, "annotations": data.annotations}
    else:
        content |= {"captions": data.captions}
        content |= {"contrastive": {"group": 3}} if task == "retrieve" else {"seq2seq": {"captions": 2}}
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return CONFIGS[task](**content)


def caption_store(data: TinyData, processor: Processor) -> TextStore:
    texts = [LabelledText(c.caption_id, c.image_ids, c.text, times=c.times) for c in read_captions(data.captions)]
    return text_store(
        data.captions.parent / "texts", processor.tokenizer, processor.text_tokens, [data.captions], texts
    )


def all_costs(source: ExampleSource, epoch: int) -> np.ndarray:
    return source.costs(epoch, slice(0, len(source)))


def image_reader(data: TinyData, processor: Processor | None = None) -> ImageReader:
    processor = processor or make_processor()
    return ImageReader(RegionStore(data.regions), processor.tags, processor.max_regions)
