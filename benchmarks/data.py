"""What the suites share: synthetic data drawn from seeds, configurations over it, and sizes of models.

An image has 36 regions of 2,048 float16 features unless stated otherwise, and an id as long as those of COCO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image

from dimvl.data.examples import BatchShape
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.sampler import ExampleSource, TrainingSteps
from dimvl.data.text_store import LabelledText, TextStore, text_store
from dimvl.data.tokenizer import SPECIAL, Tokenizer
from dimvl.files import write_json
from dimvl.model.model import DimvlModel
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.training import CaptionModule, CaptionSource

REGIONS, WIDTH, VOCABULARY = 36, 2048, 30_522
CLASSES = ("circle", "square", "star")
TEXTS = ("a small red circle left of a large blue square", "there are two blue stars", "the star is above a circle")


def make_extractor(width: int = WIDTH, classes: Sequence[str] = CLASSES, attributes: Sequence[str] = ()) -> Extractor:
    """Describe the source of synthetic regions."""
    names: dict[str, Any] = {"name": "synthetic", "fingerprint": "0" * 64, "parameters": {}}
    return Extractor(**names, feature_width=width, classes=tuple(classes), attributes=tuple(attributes))


def image_id(number: int) -> str:
    """Return an id as long as those of COCO."""
    return f"{number:012}"


def random_boxes(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes as fractions of the image: (*shape, 4)."""
    corners = generator.random((*shape, 2, 2), dtype=np.float32)
    return np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)


def random_regions(seed: int, regions: int = REGIONS, extractor: Extractor | None = None) -> dict[str, np.ndarray]:
    """Arrays of one image, each of whose regions has a class and, if the extractor has any, an attribute."""
    generator, extractor = np.random.default_rng(seed), extractor or make_extractor()
    arrays = {
        "features": generator.random((regions, extractor.feature_width), dtype=np.float32).astype(np.float16),
        "boxes": random_boxes(generator, regions),
    }
    for kind, names in (("class", extractor.classes), ("attribute", extractor.attributes)):
        shape = (regions, min(1, len(names)))
        arrays[f"{kind}_ids"] = generator.integers(0, max(1, len(names)), shape, dtype=np.int16)
        arrays[f"{kind}_scores"] = generator.uniform(0.5, 1, shape).astype(np.float16)
    return arrays


def write_regions(folder: Path, images: int, regions: int = REGIONS, width: int = WIDTH, **options: Any) -> None:
    """Write a store whose images all have the same regions."""
    extractor = make_extractor(width)
    arrays = random_regions(0, regions, extractor)
    with RegionStoreWriter(folder, extractor, **options) as writer:
        for number in range(images):
            writer.add(Regions(image_id=image_id(number), width=640, height=480, **arrays))


def make_processor(extractor: Extractor, vocabulary: int = 200, **changes: Any) -> Processor:
    """Make a processor with a tokenizer that knows the words of `TEXTS` and of the extractor."""
    tokenizer = Tokenizer.train([*TEXTS, *extractor.classes, *extractor.attributes], vocabulary)
    settings = {
        "max_regions": 36,
        "concepts": "text",
        "concept_tokens": 20,
        "concept_score": 0.3,
        "text_tokens": 40,
        **changes,
    }
    return Processor(tokenizer=tokenizer, extractor=extractor, **settings)


def write_texts(
    folder: Path, tokenizer: Tokenizer, images: int, captions: int = 1, texts: Sequence[str] = TEXTS
) -> TextStore:
    """Tokenise `captions` captions of each image, taken from `texts` in turn."""
    source = folder / f"captions-{images}.json"
    source.write_text(str(images))
    numbered = [(image, number) for image in range(images) for number in range(captions)]
    records = [
        LabelledText(captions * image + n, (image_id(image),), texts[(image + n) % len(texts)]) for image, n in numbered
    ]
    return text_store(folder / "texts", tokenizer, 40, [source], records)


def steps_of(
    source: ExampleSource, processor: Processor, objectives: Mapping[str, Any], rows: int, plans: Path
) -> TrainingSteps:
    """Return endless steps of one micro-batch of about `rows` rows, as training makes them."""
    width = processor.extractor.feature_width
    shape = BatchShape(objectives=dict(objectives), text_start=processor.text_start, feature_width=width)
    budgets = {"rows_per_step": rows, "rows_per_micro_batch": rows}
    return TrainingSteps(source, shape, seed=0, steps=10**6, **budgets, plans=plans)


def caption_steps(
    folder: Path, store: RegionStore, processor: Processor, rows: int, captions: int = 1
) -> TrainingSteps:
    """Write the captions of a store and return steps of captioning."""
    texts = write_texts(folder, processor.tokenizer, len(store), captions)
    reader = ImageReader(store, processor.tags, processor.max_regions)
    source = CaptionSource(texts, reader, Seq2seqConfig(captions=captions), processor.tokenizer, seed=0)
    return steps_of(source, processor, CaptionModule.objectives, rows, folder / f"plans-{len(store)}")


def write_tokenizer(path: Path) -> int:
    """Write a tokenizer of `VOCABULARY` pieces, the words `w0`, `w1` and so on; returns the number of words."""
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(SPECIAL))
    inner.save(str(path))
    return len(words)


def write_photographs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """Write JPEG files (quality 90, 40 to 45 kB) whose detail falls with its scale as in photographs."""
    folder.mkdir()
    files = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        generator, total = np.random.default_rng(number), np.zeros((size[1], size[0], 3))
        for scale in (4, 8, 16, 32, 64, 128, 256):
            small = Image.fromarray(generator.integers(0, 256, (scale * 3 // 4, scale, 3), dtype=np.uint8))
            total += (np.asarray(small.resize(size, Image.Resampling.BICUBIC)) - 127.5) / scale**0.75
        Image.fromarray((127.5 + 90 * total / total.std()).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def write_run_data(folder: Path, images: int, regions: int = REGIONS, captions: int = 1, length: int = 12) -> None:
    """Write what `run_config` names: regions, captions of `length` words and a tokenizer of `VOCABULARY` words."""
    write_regions(folder / "regions", images, regions)
    words = write_tokenizer(folder / "tokenizer.json")
    drawn = np.random.default_rng(0).integers(0, words, (images * captions, length))
    texts = [
        {"id": number, "image_id": image_id(number // captions), "caption": " ".join(f"w{word}" for word in row)}
        for number, row in enumerate(drawn)
    ]
    write_json(folder / "captions.json", {"annotations": texts}, indent=None)


def run_config(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """Return the configuration of a run over the data of `write_run_data`."""
    paths = {"output": folder / name, "regions": folder / "regions", "captions": folder / "captions.json"}
    inputs = {"tokenizer": folder / "tokenizer.json", **sections.pop("inputs", {})}
    return {**paths, "inputs": inputs, **sections}


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a model: base by default, on the regions of bottom-up attention."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    regions: int = 100
    feature_width: int = 2048

    @property
    def arguments(self) -> dict[str, int]:
        """Arguments of the model."""
        names = ("feature_width", "layers", "width", "heads")
        return {"inner_width": 4 * self.width, **{name: getattr(self, name) for name in names}}


def part_modalities(model: DimvlModel) -> None:
    """Change the visual weights, which start as copies of the language weights, so that a mix-up changes results."""
    for name, parameter in model.named_parameters():
        if ".vision." in name:
            parameter.data += 0.5 * parameter.std(correction=0) * torch.randn_like(parameter)
