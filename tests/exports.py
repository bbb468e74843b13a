"""Untrained models as finished runs and exports, with a tiny detector of random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_model

from dimvl.checkpoints import MODEL, OPTIMISER, RUN, STATE, WEIGHTS, seal_run
from dimvl.data.processor import Processor
from dimvl.data.trained_on import copy_trained_on
from dimvl.files import sha256, write_json
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.network import DetectorSettings
from dimvl.regions.detectors.scenes import Detector
from dimvl.regions.records import Extractor
from dimvl.trained_model import TrainedModel
from tests.factories import ATTRIBUTES, CLASSES, make_extractor, make_processor

ANSWERS = ("yes", "no", "red", "blue", "2")


def make_detector(seed: int = 0, **changes: object) -> Detector:
    settings = {
        "name": "tiny",
        "classes": CLASSES,
        "attributes": {"size": ATTRIBUTES[:2], "colour": ATTRIBUTES[2:]},
        "channels": (4, 6, 6, 8, 8, 8),
        "head_width": 16,
        "attribute_head_width": 12,
        "class_width": 4,
        "attribute_width": 2,
        "side": 64,
        "proposals": 12,
        "score_threshold": 0.26,
        "max_regions": 5,
    }
    detector = Detector.initialise(DetectorSettings(**{**settings, **changes}), seed)
    with torch.no_grad():  # random class scores are nearly equal; spread them so that boxes differ
        detector.network.faster_rcnn.roi_heads.box_predictor.class_scores.weight.mul_(10)
        detector.network.faster_rcnn.roi_heads.box_predictor.hidden[0].weight.mul_(6)
    return detector


def make_image(seed: int = 0, width: int = 90, height: int = 70) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def all_abilities(extractor: Extractor | None = None, **changes: object) -> Processor:
    processor = make_processor(
        **{"answers": ANSWERS, "captions": True, "matches": True, "masked_words": True, **changes}
    )
    return replace(processor, extractor=extractor or make_extractor())


def model_arguments(processor: Processor) -> dict[str, object]:
    return {
        "vocabulary": len(processor.tokenizer),
        "feature_width": processor.extractor.feature_width,
        "layers": 2,
        "width": 16,
        "heads": 2,
        "inner_width": 32,
        "split": ["qkv"],
        "max_positions": processor.max_positions,
        "max_images": processor.max_images,
        "times": processor.times,
        "region_words": processor.region_words,
        "word_head": processor.captions,
        "match_head": processor.matches or processor.chooses,
        "answers": len(processor.answers),
        "labels": len(processor.labels),
        "aligned": 8 if processor.aligns else 0,
        "grounded": 1 if processor.grounds else 0,
    }


def make_trained(processor: Processor | None = None, seed: int = 0) -> TrainedModel:
    """A model with weights large enough for regions, tags and words to matter."""
    processor = processor or all_abilities()
    torch.manual_seed(seed)
    model = DimvlModel(**model_arguments(processor))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return TrainedModel(model.eval(), processor, Path("run/checkpoints/step-00000003/model.safetensors"))


def write_run(folder: Path, trained: TrainedModel, step: int = 3, description: str = "synthetic scenes") -> Path:
    """Write the files of a run that an export reads."""
    trained.processor.save(folder)
    copy_trained_on(folder, trained.trained_on)
    write_json(folder / MODEL, model_arguments(trained.processor))
    config = {"task": "vqa", "output": str(folder), "regions": str(folder.parent / "regions"), "initial": None}
    file = {"file": "questions.json", "sha256": "0" * 64, "description": description}
    data = {"questions": {**file, "synthetic": "synthetic" in description}}
    write_json(folder / RUN, {"config": config, "data": data, "versions": {"dimvl": "0"}, "git_revision": "abc123"})
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    save_model(trained.model, str(checkpoint / WEIGHTS))
    checksums = {WEIGHTS: sha256(checkpoint / WEIGHTS), OPTIMISER: "0" * 64}  # an export does not read this file
    write_json(checkpoint / STATE, {"step": step, "checksums": checksums})
    seal_run(folder)
    return folder
