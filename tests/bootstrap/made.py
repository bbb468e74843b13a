"""Noisy captions of drawn regions, and untrained models to filter them with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.bootstrap.results import DROPPED, KEPT
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_store
from tests.tiny_runs import random_text

IMAGES = 11
KINDS = ("none", "swapped", "boilerplate")


def make_parts(folder: Path) -> dict[str, Any]:
    """Write a store, captions of its images and a captioner and a filter; return the keys that name them."""
    generator, lines = np.random.default_rng(3), []
    for number in range(1, IMAGES + 1):
        for place in range(1 + number % 3):
            kind = KINDS[(number + place) % 3]
            lines.append({"id": len(lines), "image": str(number), "caption": random_text(generator), "noise": kind})
    lines.append({"id": 100, "image": "2", "caption": "a late caption of an early image"})
    write_lines(folder / "noisy.jsonl", lines)
    keys: dict[str, Any] = {"regions": make_store(folder / "regions", IMAGES), "captions": folder / "noisy.jsonl"}
    captioner = make_trained(all_abilities(matches=False, answers=()), seed=0)
    chosen = make_trained(all_abilities(captions=False, answers=(), shared_prefix=True), seed=1)
    assert chosen.model.match_head is not None
    with torch.no_grad():  # scores on both sides of one half
        next(bias for name, bias in chosen.model.match_head.named_parameters() if bias.shape == (1,)).add_(0.4)
    keys["captioner"] = write_run(folder / "captioner", captioner, description="photographs")
    keys["filter"] = write_run(folder / "filter", chosen, description="photographs")
    return keys


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_config(keys: Mapping[str, Any], output: Path, **changes: Any) -> BootstrapConfig:
    sampling = {"captions": 2, "max_tokens": 6}
    given = {**keys, "output": output, "sampling": sampling, "device": "cpu", **changes}
    return BootstrapConfig(**{name: value for name, value in given.items() if value is not ...})


def read_lines(output: Path, *names: str) -> list[dict[str, Any]]:
    return [json.loads(line) for name in names or (KEPT, DROPPED) for line in (output / name).read_text().splitlines()]
