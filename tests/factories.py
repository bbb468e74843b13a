"""Tiny things to test with, drawn from seeds."""

from pathlib import Path

import numpy as np
import torch

from dimvl.data.batch import Batch
from dimvl.data.layout import Layout
from dimvl.data.processor import Processor
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store.format import FeatureDtype
from dimvl.regions.store.writer import RegionStoreWriter

CLASSES = ("circle", "square", "star")
ATTRIBUTES = ("small", "large", "red", "blue")
TEXTS = ("a small red circle left of a large blue square", "there are two blue stars", "the star is above a circle")
FEATURE_WIDTH = 6


def make_layout(seed: int, prefixes: int = 6) -> Layout:
    """Random lengths, with empty prefixes, prefixes without text and several texts per seq2seq prefix."""
    generator = np.random.default_rng(seed)
    seq2seq = generator.random(prefixes) < 0.5
    texts = np.where(seq2seq, generator.integers(0, 4, prefixes), generator.integers(0, 2, prefixes))
    context = generator.integers(0, 5, prefixes)
    return Layout(
        num_regions=generator.integers(0, 5, prefixes),
        num_context=context,
        text_lengths=generator.integers(1, 6, texts.sum()),
        text_prefix=np.repeat(np.arange(prefixes), texts),
        seq2seq=seq2seq,
    )


def make_batch(layout: Layout, seed: int = 0, vocabulary: int = 40) -> Batch:
    """Random rows for a layout, with no targets."""
    generator = torch.Generator().manual_seed(seed)
    vision, language = layout.num_vision, layout.num_rows - layout.num_vision
    return Batch(
        layout=layout,
        region_features=torch.randn(vision, FEATURE_WIDTH, generator=generator),
        region_geometry=torch.rand(vision, 7, generator=generator),
        region_image_index=torch.zeros(vision, dtype=torch.long),
        region_hidden=torch.zeros(vision, dtype=torch.bool),
        token_ids=torch.randint(5, vocabulary, (language,), generator=generator),
        positions=torch.randint(0, 30, (language,), generator=generator),
        segments=torch.randint(0, 2, (language,), generator=generator),
        targets={},
    )


def make_model(seed: int = 0, **changes: object) -> DimvlModel:
    """Two layers, 16 wide, in eval mode."""
    torch.manual_seed(seed)
    arguments = {
        "vocabulary": 40,
        "feature_width": FEATURE_WIDTH,
        "layers": 2,
        "width": 16,
        "heads": 2,
        "inner_width": 32,
        "max_positions": 64,
    }
    return DimvlModel(**{**arguments, **changes}).eval()


def make_tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS, *CLASSES, *ATTRIBUTES], 200)


def make_extractor() -> Extractor:
    return Extractor(
        name="fake",
        fingerprint="f" * 64,
        parameters={},
        feature_width=FEATURE_WIDTH,
        classes=CLASSES,
        attributes=ATTRIBUTES,
    )


def make_processor(**changes: object) -> Processor:
    arguments = {"max_regions": 10, "concepts": "text", "concept_tokens": 12, "concept_score": 0.3, "text_tokens": 16}
    return Processor(tokenizer=make_tokenizer(), extractor=make_extractor(), **{**arguments, **changes})


def make_regions(seed: int, image_id: str = "1", count: int = 4) -> Regions:
    generator = np.random.default_rng(seed)
    corners = generator.random((count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Regions(
        image_id=image_id,
        width=100,
        height=80,
        boxes=boxes,
        features=generator.normal(size=(count, FEATURE_WIDTH)).astype(np.float16),
        class_ids=generator.permuted(np.tile(np.arange(3), (count, 1)), axis=1)[:, :2].astype(np.int16),
        class_scores=np.tile([0.75, 0.125], (count, 1)).astype(np.float16),
        attribute_ids=np.stack([generator.integers(0, 2, count), generator.integers(2, 4, count)], axis=1).astype(
            np.int16
        ),
        attribute_scores=np.full((count, 2), 0.9, dtype=np.float16),
    )


def make_store(path: Path, images: int = 6, empty: int | None = None, feature_dtype: FeatureDtype = "float16") -> Path:
    """A store of images "1", "2", ...; the one of number `empty` has no regions."""
    with RegionStoreWriter(path, make_extractor(), feature_dtype=feature_dtype) as writer:
        for number in range(1, images + 1):
            writer.add(make_regions(number, str(number), 0 if number == empty else 2 + number % 4))
    return path
