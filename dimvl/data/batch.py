"""The ragged batch: examples stored as one matrix of rows, without padding.

The rows are in three blocks: the regions of all prefixes, then the contexts of all prefixes, then all texts. All visual
rows come first, so a projection for one modality is a slice. The `Layout` alone says which rows belong together.

Letters: P prefixes, T texts, N rows, Nv visual rows, Nl language rows, F region feature, M targets, Z word pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from dimvl.data.layout import Layout
from dimvl.data.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows, their layout, and what is to be predicted from them.

    Attributes:
        layout: which rows belong together.
        region_features: (Nv, F) float16, float32 or int8, as the store keeps them; the model casts them.
        region_geometry: (Nv, 7) float32 x1, y1, x2, y2, w, h, w*h as fractions of the image.
        region_image_index: (Nv,) which of the prefix's images the region is of, from 0.
        region_hidden: (Nv,) bool, True where the feature is to be replaced by the learned vector.
        token_ids: (Nl,)
        positions: (Nl,)
        segments: (Nl,) 0 context, 1 text.
        targets: by objective; an objective of the task is always there, with zero targets if need be.
        sources: what each example came from, for error messages.
        region_feature_scales: (Nv, 1) float32 scales of int8 features; None for others.
        region_times: (Nv,) float32 seconds of the region's image; None for a model that does not use them.
        region_word_ids: (Z,) word pieces of the regions' names, region by region; None for a model without them.
        region_word_weights: (Z,) float32; those of a region sum to 1.
        region_word_offsets: (Nv + 1,) where those of each region start and end.

    """

    layout: Layout
    region_features: Tensor
    region_geometry: Tensor
    region_image_index: Tensor
    region_hidden: Tensor
    token_ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Mapping[str, Targets]
    sources: Sequence[str] = ()
    region_feature_scales: Tensor | None = None
    region_times: Tensor | None = None
    region_word_ids: Tensor | None = None
    region_word_weights: Tensor | None = None
    region_word_offsets: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Move all tensors to `device`."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy all tensors to page-locked memory, from where a GPU fetches them while it computes."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Let the memory of all tensors wait for this stream before it is used again."""

        def wait(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._changed(wait)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor."""
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        targets = {name: target.changed(change) for name, target in self.targets.items()}
        return replace(self, targets=targets, **changed)

    def counts(self) -> dict[str, int]:
        """Number of targets by objective: what the losses of an optimiser step are divided by."""
        return {name: len(target) for name, target in self.targets.items()}
