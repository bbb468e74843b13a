"""Pictures a second of `dimvl extract` beside plain loops over the same detector, in one run.

    python -m benchmarks extract

A plain loop reads a picture, runs the detector on it and keeps the arrays in memory; one loop takes pictures one by
one, the other in batches as large as those of `extract`. `extract` also decodes ahead in threads and writes the region
store. The sides take turns, so that other work on the machine falls on all of them, and the medians are compared.
Beside the clock on the wall stands the processor's time, all threads together, which other work does not touch: it
tells what `extract` costs, and not what its threads gain.
Detectors: the shipped one on rendered scenes, and torchvision's Faster R-CNN for 320 pixels with random weights (only
its speed means anything) on rendered scenes scaled to 640 x 480 and kept as JPEG, the size and kind of COCO's
photographs.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dimvl.data.scenes import SceneOptions, render, sample_world
from dimvl.regions.detectors import load_detector
from dimvl.regions.detectors.base import RegionDetector
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extract import extract, images_of_folder
from dimvl.regions.images import load_image
from dimvl.regions.store.writer import RegionStoreWriter

BATCH, WORKERS = 16, 2
TORCHVISION = "fasterrcnn_mobilenet_v3_large_320_fpn"


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Compare the three sides with both detectors."""
    sides = {"scenes": (BATCH if small else 96, (160, 160), "png"), TORCHVISION: (8, (640, 480), "jpg")}
    if small:
        sides.pop(TORCHVISION)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, (count, size, suffix) in sides.items():
            pictures = write_pictures(place / name, count, size, suffix)
            detector = open_detector(name, place).to(device)
            result[name] = compare(detector, pictures, place / f"{name}-store", rounds)
    return {"batch_size": BATCH, "workers": WORKERS, "detectors": result}


def write_pictures(folder: Path, count: int, size: tuple[int, int], suffix: str) -> list[tuple[str, Path]]:
    """Render scenes."""
    folder.mkdir()
    scenes = SceneOptions(seed=11)
    for index in range(count):
        picture = render(sample_world(scenes, split="train", index=index), scenes)
        picture.resize(size).save(folder / f"{index:05}.{suffix}")
    return images_of_folder(folder)


def open_detector(name: str, place: Path) -> RegionDetector:
    """Open the shipped detector, or torchvision's with random weights."""
    if name != TORCHVISION:
        return load_detector(name)
    torch.manual_seed(0)
    model = import_torchvision().models.get_model_builder(name)(weights=None, weights_backbone=None)
    save_file(model.state_dict(), place / "random.safetensors")
    return load_detector(name, weights=str(place / "random.safetensors"))


def compare(detector: RegionDetector, pictures: list[tuple[str, Path]], store: Path, rounds: int) -> dict[str, object]:
    """Pictures a second of the three sides, each repeat once through all of them."""
    sides: dict[str, Callable[[int], object]] = {
        "plain_loop": lambda _: plain_loop(detector, pictures, 1),
        "plain_loop_in_batches": lambda _: plain_loop(detector, pictures, BATCH),
        "extract": lambda repeat: write_store(detector, pictures, store / str(repeat)),
    }
    plain_loop(detector, pictures[:BATCH], BATCH)  # warm
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    speeds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in clocks}
    for repeat in range(rounds):
        for name, run in sides.items():
            starts = {clock: read() for clock, read in clocks.items()}
            run(repeat)
            for clock, read in clocks.items():
                speeds[clock][name].append(round(len(pictures) / (read() - starts[clock]), 2))
    result: dict[str, object] = {"pictures": len(pictures)}
    for clock, of_sides in speeds.items():
        medians = {name: statistics.median(values) for name, values in of_sides.items()}
        result[f"pictures_per_{clock}_second"] = medians
        for name in ("plain_loop", "plain_loop_in_batches"):
            result[f"extract_over_{name}_{clock}"] = round(medians["extract"] / medians[name], 2)
    return {**result, "runs": speeds}


def plain_loop(detector: RegionDetector, pictures: list[tuple[str, Path]], batch: int) -> list[object]:
    """Read, detect, keep."""
    kept: list[object] = []
    for start in range(0, len(pictures), batch):
        kept += detector.detect([load_image(path) for _, path in pictures[start : start + batch]])
    return kept


def write_store(detector: RegionDetector, pictures: list[tuple[str, Path]], store: Path) -> None:
    """Do what `dimvl extract` does."""
    with RegionStoreWriter(store, detector.extractor) as writer:
        extract(pictures, detector, writer, batch_size=BATCH, workers=WORKERS)
