"""Train the detector of the synthetic scenes and write its weights and scores.

    python tools/train_scene_detector.py --out dimvl/regions/weights/scenes

It trains on rendered scenes of the split "detector", in which the held-out combinations of shape and colour never
appear, and is scored on new scenes of the splits "heldout" and "compositional". The same options give the same weights
on the same machine.
"""

import argparse
import math
import os
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.data.scenes import COLOURS, SHAPES, SIZES, TEXTURES, SceneOptions, World, render, sample_world
from dimvl.files import write_json
from dimvl.regions.detectors.network import DetectorNetwork, DetectorSettings
from dimvl.regions.detectors.scenes import Detector
from dimvl.regions.detectors.scores import attribute_accuracy, average_precision_50

BATCH_SIZE, WARMUP_STEPS = 8, 100
LEARNING_RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 1e-3, 1e-2, 5.0
NOT_SCORED = -100
SCORED_SPLITS = ("heldout", "compositional")
SCORED_SEED_OFFSET = 1  # scored scenes have another seed than the training scenes, as well as another split
ATTRIBUTES = {"size": SIZES, "colour": tuple(COLOURS), "texture": TEXTURES}

Example = tuple[np.ndarray, dict[str, Tensor]]


def training_example(seed: int, index: int) -> Example:
    """Render a scene of random difficulty: (H, W, 3) uint8 pixels, and targets for `DetectorNetwork.losses`."""
    random = np.random.default_rng([seed, index])
    options = SceneOptions(
        seed=seed,
        max_objects=int(random.integers(3, 7)),
        noise=float(random.uniform(0, 10)),
        clutter=int(random.integers(0, 17)),
        max_overlap=float(random.uniform(0, 0.4)),
    )
    world = sample_world(options, split="detector", index=index)
    names = [(item.size, item.colour, item.texture) for item in world.objects]
    attributes = [[group.index(name) for group, name in zip(ATTRIBUTES.values(), row, strict=True)] for row in names]
    targets = {
        "boxes": torch.tensor([item.box for item in world.objects]),
        "labels": torch.tensor([SHAPES.index(item.shape) + 1 for item in world.objects]),
        "attributes": torch.tensor(attributes),
    }
    return np.array(render(world, options)), targets


def flipped(example: Example) -> Example:
    """Mirror left and right; boxes follow, attributes stay."""
    pixels, targets = example
    boxes = targets["boxes"].clone()
    boxes[:, [0, 2]] = pixels.shape[1] - boxes[:, [2, 0]]
    return pixels[:, ::-1], {**targets, "boxes": boxes}


def greyed(example: Example) -> Example:
    """Remove the colour, so that shapes are not learned by their colours; the colours are then not scored."""
    pixels, targets = example
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    attributes = targets["attributes"].clone()
    attributes[:, list(ATTRIBUTES).index("colour")] = NOT_SCORED
    return grey, {**targets, "attributes": attributes}


def train(network: DetectorNetwork, steps: int, images: int, seed: int, grey_share: float) -> None:
    """Train in place; scenes are rendered when first needed and kept."""
    torch.manual_seed(seed)  # torchvision samples the boxes it scores from torch's global generator
    random = np.random.default_rng([seed, 1])
    order = np.concatenate([random.permutation(images) for _ in range(math.ceil(steps * BATCH_SIZE / images))])
    kept: dict[int, Example] = {}
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / WARMUP_STEPS, 1) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2,
    )
    start = time.monotonic()
    for step in range(steps):
        batch = []
        for index in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE].tolist():
            example = kept.get(index) or kept.setdefault(index, training_example(seed, index))
            example = flipped(example) if random.random() < 0.5 else example
            batch.append(greyed(example) if random.random() < grey_share else example)
        pixels = torch.from_numpy(np.stack([array for array, _ in batch])).permute(0, 3, 1, 2)
        losses = network.losses(pixels, [targets for _, targets in batch])
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT, error_if_nonfinite=True)
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            parts = "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"step {step + 1}/{steps}  {left:.0f} s left  {parts}", flush=True)


def coco_instances(worlds: list[World]) -> dict[str, Any]:
    """Return the objects of scenes as the content of a COCO instances file."""
    annotations = []
    for image_id, item in [(world.image_id, item) for world in worlds for item in world.objects]:
        left, top, right, bottom = item.box
        label = {"image_id": image_id, "category_id": SHAPES.index(item.shape) + 1}
        attributes = [item.size, item.colour, item.texture]
        annotations.append({**label, "bbox": [left, top, right - left, bottom - top], "attributes": attributes})
    images = [{"id": world.image_id, "width": world.width, "height": world.height} for world in worlds]
    categories = [{"id": index, "name": shape} for index, shape in enumerate(SHAPES, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def score(detector: Detector, split: str, count: int, seed: int) -> dict[str, Any]:
    """Score on new scenes of one split, with the scenes' default difficulty."""
    options = SceneOptions(seed=seed + SCORED_SEED_OFFSET)
    worlds = [sample_world(options, split=split, index=index) for index in range(count)]
    images = [render(world, options) for world in worlds]
    start = time.monotonic()
    found = dict(zip([world.image_id for world in worlds], detector.detect(images), strict=True))
    seconds = time.monotonic() - start
    instances = coco_instances(worlds)
    scores = attribute_accuracy(found, instances, SHAPES, ATTRIBUTES)
    return {
        "pictures": count,
        "ap50": average_precision_50(found, instances, SHAPES),
        "found": scores.pop("found"),
        "attribute_accuracy": scores,
        "right_number_of_objects": np.mean([len(found[w.image_id].boxes) == len(w.objects) for w in worlds]).item(),
        "pictures_per_second": round(count / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the detector of the synthetic scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, settings and scores.json")
    parser.add_argument("--steps", type=int, default=2600, help=f"steps of {BATCH_SIZE} images")
    parser.add_argument("--images", type=int, default=8000, help="number of different training images")
    parser.add_argument("--scored-images", type=int, default=500, help="images of each scored split")
    parser.add_argument("--grey", type=float, default=0.25, help="share of the images shown without colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    start = time.monotonic()
    detector = Detector.initialise(DetectorSettings(classes=SHAPES, attributes=ATTRIBUTES), arguments.seed)
    train(detector.network, arguments.steps, arguments.images, arguments.seed, arguments.grey)
    Detector(detector.network).save(arguments.out)
    seconds = time.monotonic() - start

    shipped = Detector.load(arguments.out)  # the scored weights are the written ones, in float16
    scores = {split: score(shipped, split, arguments.scored_images, arguments.seed) for split in SCORED_SPLITS}
    report = {
        "synthetic": True,
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "hardware": f"{arguments.threads} of the {os.cpu_count()} cores of a CPU",
        "training_seconds": round(seconds),
        "fingerprint": shipped.extractor.fingerprint,
        **scores,
    }
    write_json(arguments.out / "scores.json", report)
    for split, values in scores.items():
        print(split, values)


if __name__ == "__main__":
    main()
