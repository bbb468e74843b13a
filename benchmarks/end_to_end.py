"""Training from the store on: through reader, sampler, loader and engine of training itself, at real width.

    python -m benchmarks end_to_end
    python -m benchmarks end_to_end --device cuda

- `captions`: sequence-to-sequence training with five captions to an image, at 100 and at 40 regions, both variants.
  dimvl computes a prefix once for its captions; beside it each caption has its own copy of the prefix, through the same
  two attention calls, without a mask. Both take the same images and words in a step, and their losses must be equal.
  Time is from asking the loader for a step to the end of its backward pass; the optimiser does the same for both and is
  left out. `share_of_flop_ratio` is the time ratio over the ratio of operations (`dimvl/model/flops.py`).
- `run`: a run of `dimvl pretrain`, masked language modelling at 100 regions + 36 tokens with loader processes and
  optimiser, as its log tells it: share of the time that it waits for data, and utilisation, which is operations of the
  model over those of a square product (8192 a side on CUDA, 1024 on a CPU) in the same time. On a processor both are of
  wall time, so other load counts. `profile` is what `dimvl profile` tells of some steps of the same configuration.

On a processor fp32 and 2 images a step; on CUDA bf16, 128 images a step, and the run has 480 samples a step and
`training.compile`. Captions go without dropout, the run has the usual one.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import interleaved, ratio
from benchmarks.step_memory import write_data
from dimvl.data.examples import Example
from dimvl.data.sampler import ExampleSource, Step, TrainingSteps
from dimvl.model.flops import total_flops
from dimvl.model.work import Work
from dimvl.objectives import normalise
from dimvl.profiling import profile
from dimvl.profiling.table import as_values
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.captioning import CaptionConfig
from dimvl.tasks.captioning.training import CaptionSource
from dimvl.tasks.pretraining import PretrainConfig
from dimvl.training.build import build_task
from dimvl.training.engine import TorchEngine
from dimvl.training.loading import prefetch
from dimvl.training.ranks import SingleProcess
from dimvl.training.report import Meter, StepReport
from dimvl.training.run import run_training

CAPTIONS, LOADERS, DROPOUT = 5, 12, 0.1
BASE = {"layers": 12, "width": 768, "heads": 12, "inner_width": 3072, "dropout": 0.0}
TINY = {"layers": 1, "width": 32, "heads": 2, "inner_width": 64, "dropout": 0.0}


class Pairs:
    """Every caption with a copy of its image: an example of its own."""

    def __init__(self, source: CaptionSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def costs(self, epoch: int, some: slice) -> np.ndarray:
        """Upper bound of the rows of the examples of some images."""
        return self.source.costs(epoch, some) + (CAPTIONS - 1) * self.source.prefix_rows(some)

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Documents of some images; each image is read once."""
        shared = self.source.build_all(epoch, indexes)
        return [replace(example, texts=[text]) for example in shared for text in example.texts]


def config_of(folder: Path, name: str, regions: int, model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return what all runs here have in their configuration."""
    return {
        "output": folder / name,
        "regions": folder / "regions",
        "captions": folder / "captions.json",
        "inputs": {"max_regions": regions, "tag_tokens": 0, "tokenizer": folder / "tokenizer.json"},
        "model": model,
        **sections,
    }


def measure_captions(
    variant: str, regions: int, images: int, model: dict[str, Any], device: str, rounds: int
) -> dict[str, Any]:
    """Time of pairs over that of shared prefixes, beside the ratio of operations."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, images * (rounds + 2), regions, CAPTIONS, 13)
        training = {"steps": rounds + 2, "device": device, "precision": "bf16" if device == "cuda" else "fp32"}
        seq2seq = {"variant": variant, "share": 0.15, "captions": CAPTIONS}
        sections = {"task": "caption", "seq2seq": seq2seq, "training": training}
        config = CaptionConfig.model_validate(config_of(folder, "captions", regions, model, **sections))
        task, source = build_task(config, store := RegionStore(config.regions), task_of(config).read(config, store))
        engine = TorchEngine(task, config.training)
        data = {"shared": steps_of(source, images, engine, rounds + 2)}
        data["pairs"] = steps_of(Pairs(source), images, engine, rounds + 2)
        facts = compare_first(data, engine)
        runs = {name: next_step(steps, engine) for name, steps in data.items()}
        seconds = interleaved(runs, rounds, device)
    times = ratio(seconds["pairs"], seconds["shared"])
    images_per_second = {name: images / float(np.median(values)) for name, values in seconds.items()}
    share = [round(value / facts["flop_ratio"], 3) for value in times]
    return {**facts, "images_per_second": images_per_second, "time_ratio": times, "share_of_flop_ratio": share}


def steps_of(source: ExampleSource, images: int, engine: TorchEngine, steps: int) -> TrainingSteps:
    """Steps of so many images, all in one micro-batch; all images have as many rows."""
    rows = images * int(source.costs(0, slice(0, 1))[0])
    return TrainingSteps(source, engine.task.shape, seed=0, steps=steps, rows_per_step=rows, rows_per_micro_batch=rows)


def compare_first(data: dict[str, TrainingSteps], engine: TorchEngine) -> dict[str, Any]:
    """Losses and operations of the first step.

    Raises:
        ValueError: shared prefixes give another loss than pairs, or another number of words.

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
    """Return what takes the next step from the loader, forward and backward, at each call."""
    cuda, ranks = engine.device.type == "cuda", SingleProcess()
    steps: Iterator[Step] = prefetch(data, 0, LOADERS if cuda else 0, engine.device, Meter(ranks), ranks)

    def run() -> None:
        (batch,) = next(steps).micro_batches
        engine.backward(normalise(engine.losses(batch), batch.counts(), engine.task.weights), is_last=True)
        nn.Module.zero_grad(engine.task, set_to_none=True)

    return run


def measure_run(samples: int, steps: int, model: dict[str, Any], regions: int, device: str) -> dict[str, Any]:
    """Train as `dimvl pretrain` does, and give what the log says of the second half of the steps."""
    reports: list[StepReport] = []
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rows = samples * (regions + 36)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, images := samples * min(steps, 10), regions, 1, 33)  # [CLS] [SEP], 33 words, [SEP]
        training = {
            **{"steps": steps, "log_every": steps // 2, "rows_per_step": rows, "rows_per_micro_batch": rows},
            **{"device": device, "precision": "bf16", "workers": LOADERS if cuda else 1, "compile": cuda},
        }
        shares = {"masked_lm": 1.0, "seq2seq_lm": 0.0, "masked_object": 0.0, "matching": 0.0}
        sections = {"objectives": {"shares": shares}, "training": training}
        model = model | {"dropout": DROPOUT}
        config = PretrainConfig.model_validate(config_of(folder, "run", regions, model, **sections))
        run_training(config, reports.append)
        parts = profile(config, folder / "profile", steps=steps // 6, warmup=2)
    last = reports[-1]
    return {
        **{"precision": "bf16", "dropout": DROPOUT, "compiled": cuda, "samples_per_step": samples, "images": images},
        "steps": steps - steps // 2,
        "samples_per_second": last.examples_per_second,
        "data_wait": last.data_wait,
        "utilisation": last.utilisation,
        "memory_gb": last.memory_gb,
        "profile": as_values(parts),
    }


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure everything."""
    model, captions = (TINY, {}) if small else (BASE, {})
    images = 128 if device == "cuda" else 2
    for regions in (6,) if small else (100, 40):
        for variant in ("causal", "masked"):
            found = measure_captions(variant, regions, images, model, device, rounds)
            captions[f"{regions}+14 {variant}"] = found
    samples, steps = (480, 60) if device == "cuda" else (4, 6)
    last = measure_run(samples, steps, model, 6 if small else 100, device)
    return {"layers": model["layers"], "images_per_step": images, "captions": captions, "run": last}
