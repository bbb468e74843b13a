"""Images per CPU second of `dimvl extract` beside plain loops over the same detector, in one run.

    python -m benchmarks extract

A plain loop reads an image, runs the detector on it and keeps the arrays in memory; one loop takes images one by one,
the other in batches as large as those of `extract`. `extract` also decodes ahead in threads and writes the region
store. CPU time is over all threads, so it does not show what the threads gain. Detectors: the shipped one on rendered
scenes, and torchvision's Faster R-CNN for 320 pixels with random weights (only its speed means anything) on scenes
scaled to 640 x 480 and saved as JPEG, the size and format of COCO's photographs.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.harness import interleaved, speeds
from dimvl.data.scenes import SceneOptions, render, sample_world
from dimvl.regions.detectors.base import RegionDetector
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extract import extract
from dimvl.regions.images import load_image
from dimvl.regions.listing import images_of_folder
from dimvl.regions.store.writer import RegionStoreWriter

BATCH, WORKERS = 16, 2
TORCHVISION = "fasterrcnn_mobilenet_v3_large_320_fpn"


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Compare the three sides with both detectors."""
    sides = {"scenes": (BATCH if small else 96, (160, 160), "png"), TORCHVISION: (8, (640, 480), "jpg")}
    if small:
        sides.pop(TORCHVISION)
    result = {}
    for name, (count, size, suffix) in sides.items():
        images = write_images(folder / name, count, size, suffix)
        detector = open_detector(name, folder).to(device)
        result[name] = compare(detector, images, folder / f"{name}-store", device, rounds)
    return {"batch_size": BATCH, "workers": WORKERS, "detectors": result}


def write_images(folder: Path, count: int, size: tuple[int, int], suffix: str) -> list[tuple[str, Path]]:
    """Render scenes."""
    folder.mkdir()
    scenes = SceneOptions(seed=11)
    for index in range(count):
        image = render(sample_world(scenes, split="train", index=index), scenes)
        image.resize(size).save(folder / f"{index:05}.{suffix}")
    return images_of_folder(folder)


def open_detector(name: str, folder: Path) -> RegionDetector:
    """Open the shipped detector, or torchvision's with random weights."""
    if name != TORCHVISION:
        return load_detector(name)
    torch.manual_seed(0)
    model = import_torchvision().models.get_model_builder(name)(weights=None, weights_backbone=None)
    save_file(model.state_dict(), folder / "random.safetensors")
    return load_detector(name, weights=str(folder / "random.safetensors"))


def compare(
    detector: RegionDetector, images: list[tuple[str, Path]], store: Path, device: str, rounds: int
) -> dict[str, Any]:
    """CPU time of the three sides."""
    stores = (store / str(number) for number in itertools.count())
    sides: dict[str, Callable[[], object]] = {
        "extract": lambda: write_store(detector, images, next(stores)),
        "plain_loop": lambda: plain_loop(detector, images, 1),
        "plain_loop_in_batches": lambda: plain_loop(detector, images, BATCH),
    }
    seconds = interleaved(sides, rounds, device)
    return {"images": len(images), **speeds(seconds, "extract", "images_per_second", len(images), 1)}


def plain_loop(detector: RegionDetector, images: list[tuple[str, Path]], batch: int) -> list[object]:
    """Read, detect, keep."""
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]
    return [found for chosen in batches for found in detector.detect([load_image(path) for _, path in chosen])]


def write_store(detector: RegionDetector, images: list[tuple[str, Path]], store: Path) -> None:
    """Do what `dimvl extract` does."""
    with RegionStoreWriter(store, detector.extractor) as writer:
        extract(images, detector, writer, batch_size=BATCH, workers=WORKERS)
