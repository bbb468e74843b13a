"""Indexes of drawn embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dimvl.search.format import Manifest
from dimvl.search.writer import IndexWriter

WIDTH = 16


def draw(count: int, seed: int = 0, spread: float = 10.0, width: int = WIDTH) -> Tensor:
    """Rows of unit length around one of three directions; the smaller the spread, the closer."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=generator)
    noise = spread * torch.randn(count, width, generator=generator)
    return normalize(centres[torch.randint(3, (count,), generator=generator)] + noise, dim=1)


def make_manifest(model: str = "a" * 64, store: str = "stores/made", width: int = WIDTH) -> Manifest:
    return Manifest(model=model, model_name="exports/made", store=store, width=width, parts=())


def make_index(path: Path, rows: Tensor, ids: Sequence[str] | None = None, at_once: int = 7) -> Path:
    """Write rows, a few at a time, as images "0", "1", ... if nothing else is given."""
    names = [str(number) for number in range(len(rows))] if ids is None else list(ids)
    with IndexWriter(path, make_manifest(width=rows.shape[1])) as writer:
        for start in range(0, len(rows), at_once):
            chosen = slice(start, start + at_once)
            writer.add(names[chosen], torch.arange(start, start + len(rows[chosen])), rows[chosen])
    return path
