"""A store whose regions show words, and captions that say so: feature k of a region is high where it shows word k."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dimvl.regions.naming.concepts import ConceptNamer, ConceptNetwork, Source
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store.writer import RegionStoreWriter
from tests.factories import make_regions

SHOWN = ("dog", "ball", "snow", "man", "red", "run")
NAMED_WORDS = ("dog", "run", "red", "grass", "man", "sky", "ball")
CAPTIONS = {
    "dog": "A dog is here.",
    "ball": "There are two balls and a ball.",
    "snow": "Look at the snow.",
    "man": "The men.",
    "red": "A red bus.",
    "run": "He is running with a bus.",
}
EXTRACTOR = Extractor(
    name="made", fingerprint="a" * 64, parameters={"side": 100}, feature_width=8, classes=(), attributes=()
)
REGIONS = 4


def made_regions(number: int, rng: np.random.Generator) -> tuple[Regions, list[int]]:
    """Four regions, each of which shows one word or nothing, and the words."""
    shown = rng.choice(len(SHOWN), 2, replace=False).tolist()
    features = rng.normal(0, 0.3, (REGIONS, 8))
    for region, word in zip(rng.permutation(REGIONS)[:2], shown, strict=True):
        features[region, word] += 3
    none = {f"{kind}_{what}": np.zeros((REGIONS, 0)) for kind in ("class", "attribute") for what in ("ids", "scores")}
    regions = replace(make_regions(number, f"{number}.jpg", REGIONS), features=features.astype(np.float16), **none)
    return regions, shown


def make_captioned(
    folder: Path, images: int = 60, seed: int = 0, extractor: Extractor = EXTRACTOR, dtype: str = "float16"
) -> tuple[Path, Path]:
    """Write a store and a COCO caption file of its images; return both."""
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    with RegionStoreWriter(folder / "store", extractor, feature_dtype=dtype) as writer:
        for number in range(images):
            regions, shown = made_regions(number, rng)
            writer.add(regions)
            listed.append({"id": regions.image_id, "file_name": regions.image_id})
            for word in shown:
                text = CAPTIONS[SHOWN[word]]
                annotations.append({"id": len(annotations), "image_id": regions.image_id, "caption": text})
    file = folder / "captions.json"
    file.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return folder / "store", file


def write_config(folder: Path, store: Path, captions: Path, **more: object) -> Path:
    """Write a configuration of `dimvl concepts` that learns the made words in two seconds."""
    config = {
        "output": str(folder / "concepts"),
        "regions": str(store),
        "captions": str(captions),
        "words": 9,
        "training": {
            "pooling": "noisy_or",
            "hidden": 0,
            "epochs": 20,
            "images_per_step": 16,
            "learning_rate": 0.2,
            "dropout": 0,
        },
        "validation": {"captions": str(captions), "replicates": 20},
    }
    file = folder / "concepts.yaml"
    file.write_text(json.dumps({**config, **more}))
    return file


def make_namer(extractor: Extractor, seed: int = 0) -> ConceptNamer:
    """Concepts with random weights for the features of an extractor."""
    torch.manual_seed(seed)
    network = ConceptNetwork(extractor.feature_width, len(NAMED_WORDS), "max", 4)
    torch.nn.init.normal_(network.word.weight)
    return ConceptNamer(network, NAMED_WORDS, ("noun",) * len(NAMED_WORDS), Source.of(extractor))
