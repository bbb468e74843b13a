"""dimvl's own detector, ready for use; the one shipped with the package finds the objects of synthetic scenes.

The network is in `network.py`. A saved detector is a folder of two files, `detector.json` (settings) and
`detector.safetensors` (weights); an exported model contains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dimvl.files import write_json
from dimvl.files.weights import save_weights
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    WEIGHTS,
    Detections,
    RegionDetector,
    split_by_image,
    whole_number,
)
from dimvl.regions.detectors.network import STRIDE, DetectorNetwork, DetectorSettings
from dimvl.regions.detectors.settings import loaded, scene_settings
from dimvl.regions.detectors.weights import fingerprint, read_weights

LONGEST_TO_SHORTEST = 4  # a longer image is scaled down further, so that a panorama costs no more than four squares
SCENES_FOLDER = Path(__file__).parents[1] / "weights" / "scenes"


class Detector(RegionDetector):
    """dimvl's own detector, ready for use: images of any size in, regions with fractional boxes out."""

    files = (WEIGHTS,)

    def __init__(self, network: DetectorNetwork) -> None:
        self.settings = settings = network.settings
        names = [name for group in settings.attributes.values() for name in group]
        width = settings.class_width + settings.attribute_width
        super().__init__(settings.name, network, settings.selection, width, settings.classes, names)

    @classmethod
    def initialise(cls, settings: DetectorSettings, seed: int) -> "Detector":
        """Make a detector whose random weights depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(DetectorNetwork(settings))

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """See `RegionDetector.load`."""
        settings = scene_settings(folder)
        mismatch = f"{folder / WEIGHTS} does not fit the settings in {SETTINGS}; copy both from the same detector"
        return cls(loaded(lambda: DetectorNetwork(settings), read_weights(folder / WEIGHTS), mismatch))

    def save(self, folder: Path) -> None:
        """Write settings and float16 weights."""
        save_weights(folder / WEIGHTS, self._stored_weights())
        write_json(folder / SETTINGS, {KIND: "scenes", **asdict(self.settings)})

    def configure(self, options: Mapping[str, Any]) -> "Detector":
        """Change some of the `parameters`; `shortest_side` is another name of `side`."""
        options = dict(options)
        if "shortest_side" in options:
            options["side"] = whole_number("shortest_side", options.pop("shortest_side"))
        return super().configure(options)

    def _stored_weights(self) -> dict[str, Tensor]:
        """Weights by name, floats as float16, as the file holds them."""
        weights = sorted(self.network.state_dict().items())
        return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights}

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self._stored_weights())

    def _numbers(self) -> dict[str, int]:
        return {"side": self.settings.side, "proposals": self.settings.proposals}

    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        changes: dict[str, Any] = {**vars(self.selection), **numbers}
        self.settings = self.network.settings = replace(self.settings, **changes)
        self.network.faster_rcnn.rpn._post_nms_top_n["testing"] = self.settings.proposals

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the image as (height, width, 3) uint8 with its shorter side as configured."""
        side = self.settings.side
        scale = min(side / min(image.size), LONGEST_TO_SHORTEST * side / max(image.size))
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image.convert("RGB"))

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        height, width, _ = arrays[0].shape
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2)
        # Padded with the grey that normalisation maps to 0, to at least two cells of the feature map.
        pixels = F.pad(pixels, (0, _padding(width), 0, _padding(height)), value=127)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        feature_map = self.network.feature_map(pixels)
        found = (
            self._given(given, scale) if given is not None else self.network.find(pixels, (height, width), feature_map)
        )
        boxes = [self._with_whole_image(rows, width, height) for rows in found]
        described = self.network.describe(pixels, boxes, feature_map)
        class_scores, class_ids = described.class_scores[:, 1:].topk(min(CLASSES_KEPT, len(self.settings.classes)), 1)
        best = [scores.max(dim=1) for scores in described.attribute_scores]
        group_sizes = [len(names) for names in self.settings.attributes.values()]
        starts = torch.tensor([0, *group_sizes[:-1]], device=class_ids.device).cumsum(0)
        return split_by_image(
            found,
            [rows / scale for rows in boxes],
            features=described.features,
            class_ids=class_ids,
            class_scores=class_scores,
            attribute_ids=torch.stack([group.indices for group in best], dim=1) + starts,
            attribute_scores=torch.stack([group.values for group in best], dim=1),
        )


def load_scene_detector() -> Detector:
    """Load the detector that is shipped with the package, for synthetic scenes."""
    return Detector.load(SCENES_FOLDER)


def _padding(length: int) -> int:
    """Pixels that bring a side to a multiple of the stride, and to two strides at least."""
    return max(-length % STRIDE, 2 * STRIDE - length)
