"""Training samples of seeded lengths, the field's ways to batch them, and their ragged and padded layouts.

Length files: 100 regions + 36 tokens, 36 + 20, and mixed as adaptive detectors give them (a lognormal number of regions
between 10 and 100, 8 to 36 tokens). A sample is regions of 2,048 numbers with geometry, and `[CLS] words [SEP]` with
15% of the words to predict.

Letters: S samples of a file, B samples of a batch, L rows of the longest sample, R and T its most regions and tokens,
N rows in all, M words to predict, F region feature.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import VOCABULARY, WIDTH
from dimvl.data.batch import Batch
from dimvl.data.layout import Layout, ranges
from dimvl.data.targets import WordTargets

SHARE, MEDIAN_REGIONS, SIGMA = 0.15, 30, 0.6
KINDS = ("100+36", "36+20", "mixed")


def draw_lengths(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Regions and tokens of the samples of a length file: (S, 2)."""
    if kind != "mixed":
        return np.tile(np.array([int(number) for number in kind.split("+")]), (count, 1))
    generator = np.random.default_rng(seed)
    regions = np.clip(generator.lognormal(np.log(MEDIAN_REGIONS), SIGMA, count).round(), 10, 100)
    return np.stack([regions.astype(np.int64), generator.integers(8, 37, count)], axis=1)


def token_buckets(lengths: np.ndarray, budget: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Make batches as UNITER does: sort 8,192 lengths (S,) at a time, and cut before padding exceeds `budget` rows."""
    batches = []
    for bucket in np.array_split(generator.permutation(len(lengths)), -(-len(lengths) // 8192)):
        order, start = bucket[np.argsort(-lengths[bucket], kind="stable")], 0
        while start < len(order):
            count = max(1, budget // int(lengths[order[start]]))
            batches.append(order[start : start + count])
            start += count
    generator.shuffle(batches)
    return batches


def layout_of(lengths: np.ndarray) -> Layout:
    """Lay samples out as dimvl does: all regions, all `[CLS]`, all texts."""
    regions, tokens = lengths.T
    return Layout(
        num_regions=regions,
        num_context=np.ones_like(regions),
        text_lengths=tokens - 1,
        text_prefix=np.arange(len(lengths)),
        seq2seq=np.zeros(len(lengths), dtype=bool),
    )


def make_batch(lengths: np.ndarray, samples: np.ndarray) -> Batch:
    """Make a ragged batch of samples, each drawn with its number as the seed."""
    drawn = [_draw(int(number), *lengths[number].tolist()) for number in samples]
    layout = layout_of(lengths[samples])
    for start, part in zip(layout.text_starts, drawn, strict=True):
        part["places"] += start
    joined = {name: torch.from_numpy(np.concatenate([part[name] for part in drawn])) for name in drawn[0]}
    starts = torch.zeros(len(samples), dtype=torch.long)
    positions = torch.from_numpy(ranges(np.ones_like(layout.text_lengths), layout.text_lengths))
    token_ids = torch.cat([starts + 1, joined["words"]])
    return Batch(
        layout=layout,
        region_features=joined["features"],
        region_geometry=joined["geometry"],
        region_image_index=torch.zeros(layout.num_vision, dtype=torch.long),
        region_hidden=torch.zeros(layout.num_vision, dtype=torch.bool),
        token_ids=token_ids,
        positions=torch.cat([starts, positions]),
        segments=torch.ones_like(token_ids),
        targets={"words": WordTargets(joined["places"], joined["labels"])},
    )


def _draw(number: int, regions: int, tokens: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    words = generator.integers(5, VOCABULARY, tokens - 1)
    count = max(1, round(SHARE * (tokens - 2)))
    places = np.sort(generator.choice(tokens - 2, count, replace=False))
    labels = words[places]
    words[places] = 4
    return {
        "features": generator.standard_normal((regions, WIDTH), dtype=np.float32),
        "geometry": generator.random((regions, 7), dtype=np.float32),
        **{"words": words, "places": places, "labels": labels},
    }


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """The same samples, padded.

    Attributes:
        features: (B, R, F), with geometry (B, R, 7) and region_mask (B, R), True = a region.
        token_ids: (B, T) `[CLS] words [SEP]`, with positions (B, T) and token_mask (B, T).
        labels: (B, T), -100 where nothing is to be predicted.
        gather: (B, L) index into (B, R + T) of each row of a sequence without gaps, regions first; 0 for padding.
        order: (B, L) index of the same row in the ragged batch; 0 for padding.
        bias: (B, 1, 1, L) 0, and -10000 for padding; None without padding.
        vision: (B * L, 1) True = a region.
        places: (M,) the words to predict among the B * L rows, with words (M,).
        ragged: the same samples in dimvl's layout.

    """

    features: Tensor
    geometry: Tensor
    region_mask: Tensor
    token_ids: Tensor
    positions: Tensor
    token_mask: Tensor
    labels: Tensor
    gather: Tensor
    order: Tensor
    bias: Tensor | None
    vision: Tensor
    places: Tensor
    words: Tensor
    ragged: Batch

    @property
    def rows(self) -> int:
        """Rows without padding."""
        return self.ragged.layout.num_rows

    def to(self, device: torch.device) -> Self:
        """Move all tensors to `device`."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value if value is None else value.to(device) for name, value in moved.items()})


def pad(batch: Batch) -> PaddedBatch:
    """Pad a batch."""
    layout, targets = batch.layout, batch.targets["words"]
    regions, tokens = layout.num_regions, layout.text_lengths + 1
    total, most = regions + tokens, int(regions.max())
    column = torch.arange(int(total.max()))[None]
    num_regions, num_rows = torch.from_numpy(regions)[:, None], torch.from_numpy(total)[:, None]
    vision, mask, region_mask = column < num_regions, column < num_rows, torch.arange(most)[None] < num_regions
    token_rows = ranges(np.zeros_like(tokens), tokens)
    owner = np.repeat(np.arange(len(tokens)), tokens)
    flat = np.where(token_rows == 0, owner, len(tokens) + np.arange(len(owner)) - owner - 1)  # all [CLS] come first

    def tokens_of(values: Tensor, fill: int) -> Tensor:
        padded = torch.full((len(tokens), int(tokens.max())), fill)
        padded[owner, token_rows] = values[flat]
        return padded

    def regions_of(values: Tensor) -> Tensor:
        padded = values.new_zeros(len(regions), most, values.shape[1])
        padded[region_mask] = values
        return padded

    labels = torch.full((len(batch.token_ids),), -100)
    labels[targets.rows - layout.num_vision] = targets.labels
    padded_labels = tokens_of(labels, -100)
    found = (padded_labels >= 0).nonzero()
    starts = [torch.from_numpy(s)[:, None] for s in (layout.region_starts, layout.context_starts, layout.text_starts)]
    token = column - num_regions
    order = torch.where(vision, starts[0] + column, torch.where(token == 0, starts[1], starts[2] + token - 1))
    return PaddedBatch(
        features=regions_of(batch.region_features),
        geometry=regions_of(batch.region_geometry),
        region_mask=region_mask,
        token_ids=tokens_of(batch.token_ids, 0),
        positions=tokens_of(batch.positions, 0),
        token_mask=tokens_of(torch.ones_like(batch.token_ids), 0).bool(),
        labels=padded_labels,
        gather=torch.where(mask, torch.where(vision, column, token + most), 0),
        order=torch.where(mask, order, 0),
        bias=None if mask.all() else (~mask).float()[:, None, None] * -10_000.0,
        vision=vision.reshape(-1, 1),
        places=found[:, 0] * mask.shape[1] + num_regions[found[:, 0], 0] + found[:, 1],
        words=padded_labels[padded_labels >= 0],
        ragged=batch,
    )
