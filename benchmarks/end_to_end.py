"""Training from the store to the gradient, through the reader, sampler, loader and engine of training.

    python -m benchmarks end_to_end
    python -m benchmarks end_to_end --device cuda

- `captions`: sequence-to-sequence training with five captions per image, at 100 and at 40 regions, both variants. dimvl
  computes a prefix once for all its captions; in `pairs` each caption has its own copy of the prefix, through the same
  two attention calls, without a mask. Both take the same images and words in a step, and their losses must be equal.
  Time runs from the request for a step to the end of its backward pass, without the optimiser, which does the same for
  both. `share_of_flop_ratio` is the ratio of times over the ratio of operations (`dimvl/model/flops.py`).
- `run`: a run of `dimvl pretrain`, masked language modelling at 100 regions + 36 tokens with loader processes and
  optimiser, as its log reports it: the share of time spent waiting for data, and the utilisation, which is the model's
  operations over those of a square product (8192 a side on CUDA, 1024 on a CPU) in the same time. Both use wall time,
  so other load on a CPU affects them. `profile` is what `dimvl profile` reports for the same configuration.

On a CPU, fp32 and 2 images per step; on CUDA, bf16 and 128 images per step, and 480 samples per step and
`training.compile` in the run. Captions are trained without dropout, the run with the usual one.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.data import run_config, write_run_data
from benchmarks.harness import interleaved, ratio
from dimvl.data.examples import Example
from dimvl.data.sampler import ExampleSource, Step, TrainingSteps
from dimvl.model.flops import total_flops
from dimvl.model.work import Work
from dimvl.objectives import normalise
from dimvl.profiling import profile
from dimvl.profiling.table import as_values
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.captioning.training import CaptionSource
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.training.build import build_task
from dimvl.training.engine import TorchEngine
from dimvl.training.loading import prefetch
from dimvl.training.ranks import SingleProcess
from dimvl.training.report import Meter, StepReport
from dimvl.training.run import run_training

CAPTIONS, LOADERS, DROPOUT = 5, 12, 0.1
BASE: dict[str, Any] = {"layers": 12, "dropout": 0.0}
TINY: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "inner_width": 64, "dropout": 0.0}


class Pairs:
    """Every caption as an example of its own, with a copy of its image."""

    def __init__(self, source: CaptionSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def costs(self, epoch: int, some: slice) -> np.ndarray:
        """Upper bound on the rows of the examples of some images."""
        return self.source.costs(epoch, some) + (CAPTIONS - 1) * self.source.prefix_rows(epoch, some)

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Examples of some images; each image is read once."""
        shared = self.source.build_all(epoch, indexes)
        return [replace(example, texts=[text]) for example in shared for text in example.texts]


def measure_captions(
    folder: Path, variant: str, regions: int, images: int, model: dict[str, Any], device: str, rounds: int
) -> dict[str, Any]:
    """Time of pairs over that of shared prefixes, with the ratio of operations."""
    folder.mkdir()
    write_run_data(folder, images * (rounds + 2), regions, CAPTIONS, 13)
    training = {"steps": rounds + 2, "device": device, "precision": "bf16" if device == "cuda" else "fp32"}
    seq2seq = {"variant": variant, "share": 0.15, "captions": CAPTIONS}
    inputs = {"max_regions": regions, "concepts": "none"}
    sections = {"task": "caption", "inputs": inputs, "model": model, "seq2seq": seq2seq, "training": training}
    config = CaptionConfig.model_validate(run_config(folder, "captions", **sections))
    task, source = build_task(config, store := RegionStore(config.regions), task_of(config).read(config, store))
    engine = TorchEngine(task, config.training)
    data = {"shared": steps_of(source, images, engine, rounds + 2)}
    data["pairs"] = steps_of(Pairs(source), images, engine, rounds + 2)
    facts = compare_first(data, engine)
    seconds = interleaved({name: next_step(steps, engine) for name, steps in data.items()}, rounds, device)
    times = ratio(seconds["pairs"], seconds["shared"])
    images_per_second = {name: images / float(np.median(values)) for name, values in seconds.items()}
    share = [round(value / facts["flop_ratio"], 3) for value in times]
    return {**facts, "images_per_second": images_per_second, "time_ratio": times, "share_of_flop_ratio": share}


def steps_of(source: ExampleSource, images: int, engine: TorchEngine, steps: int) -> TrainingSteps:
    """Steps of a number of images in one micro-batch; all images have equally many rows."""
    rows = images * int(source.costs(0, slice(0, 1))[0])
    return TrainingSteps(source, engine.task.shape, seed=0, steps=steps, rows_per_step=rows, rows_per_micro_batch=rows)


def compare_first(data: dict[str, TrainingSteps], engine: TorchEngine) -> dict[str, Any]:
    """Return losses, rows and the ratio of operations of the first step.

    Raises:
        ValueError: the losses differ.

    """
    losses, flops, rows = {}, {}, {}
    for name, steps in data.items():
        (batch,) = steps[0].micro_batches
        ((objective, loss),) = engine.losses(batch).items()
        losses[name] = float(loss.detach()) / batch.counts()[objective]
        flops[name] = total_flops(engine.task.model, Work.of(batch, padded=False))
        rows[name] = batch.layout.num_rows
    tolerance = 1e-5 if engine.config.precision == "fp32" else 2e-2
    if not abs(losses["pairs"] / losses["shared"] - 1) < tolerance:
        raise ValueError(f"pairs have the loss {losses['pairs']}, shared prefixes {losses['shared']}")
    return {"losses": losses, "rows": rows, "flop_ratio": flops["pairs"] / flops["shared"]}


def next_step(data: TrainingSteps, engine: TorchEngine) -> Callable[[], None]:
    """Return a function that takes the next step from the loader and runs it forward and backward."""
    cuda, ranks = engine.device.type == "cuda", SingleProcess()
    steps: Iterator[Step] = prefetch(data, 0, LOADERS if cuda else 0, engine.device, Meter(ranks), ranks)

    def run() -> None:
        (batch,) = next(steps).micro_batches
        engine.backward(normalise(engine.losses(batch), batch.counts(), engine.task.weights), is_last=True)
        nn.Module.zero_grad(engine.task, set_to_none=True)

    return run


def measure_run(
    folder: Path, samples: int, steps: int, model: dict[str, Any], regions: int, device: str
) -> dict[str, Any]:
    """Train as `dimvl pretrain` does, and return what the log says about the second half of the steps."""
    reports: list[StepReport] = []
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rows = samples * (regions + 36)
    folder.mkdir()
    write_run_data(folder, images := samples * min(steps, 10), regions, 1, 33)  # [CLS] [SEP], 33 words, [SEP]
    training = {
        **{"steps": steps, "log_every": steps // 2, "rows_per_step": rows, "rows_per_micro_batch": rows},
        **{"device": device, "precision": "bf16", "workers": LOADERS if cuda else 1, "compile": cuda},
    }
    shares = {"masked_lm": 1.0, "seq2seq_lm": 0.0, "masked_object": 0.0, "matching": 0.0}
    sections = {"inputs": {"max_regions": regions, "concepts": "none"}, "model": model | {"dropout": DROPOUT}}
    sections |= {"objectives": {"shares": shares}, "training": training}
    config = PretrainConfig.model_validate(run_config(folder, "run", **sections))
    run_training(config, reports.append)
    parts = profile(config, folder / "profile", steps=steps // 6, warmup=2)
    last = reports[-1]
    return {
        **{"precision": "bf16", "dropout": DROPOUT, "compiled": cuda, "samples_per_step": samples, "images": images},
        "steps": steps - steps // 2,
        "samples_per_second": last.examples_per_second,
        **{name: getattr(last, name) for name in ("data_wait", "utilisation", "memory_gb")},
        "profile": as_values(parts),
    }


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure everything."""
    model, captions = (TINY, {}) if small else (BASE, {})
    images = 128 if device == "cuda" else 2
    for regions in (6,) if small else (100, 40):
        for variant in ("causal", "masked"):
            place = folder / f"{regions}-{variant}"
            found = measure_captions(place, variant, regions, images, model, device, rounds)
            captions[f"{regions}+14 {variant}"] = found
    samples, steps = (480, 60) if device == "cuda" else (4, 6)
    last = measure_run(folder / "run", samples, steps, model, 6 if small else 100, device)
    return {"layers": model["layers"], "images_per_step": images, "captions": captions, "run": last}
