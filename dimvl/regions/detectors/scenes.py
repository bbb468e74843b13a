"""The detector ready for use: pictures in, regions out (boxes, features, class and attribute probabilities).

Stands between the pictures and the region store; the network itself is in `dimvl.regions.detectors.network`. A detector
is a folder of two files, `detector.json` (settings) and `detector.safetensors` (weights), which an exported model
carries with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import atomic_path, read_json, write_json
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    Detections,
    RegionDetector,
    at_least_one,
    cut,
    given_rows,
    refuse_options,
    side_in_pixels,
    weights_fingerprint,
    with_whole_image,
)
from dimvl.regions.detectors.network import STRIDE, Described, DetectorNetwork, DetectorSettings
from dimvl.regions.records import Extractor

LONGEST_TO_SHORTEST = 4  # a longer picture is scaled down further, so that a panorama costs no more than four squares
SCENES_FOLDER = Path(__file__).parents[1] / "weights" / "scenes"
NUMBERS = (*("side", "proposals", "score_threshold", "nms_threshold", "min_regions", "max_regions", "whole_image"),)
"""Settings that change what comes out and may be changed without training."""


class Detector(RegionDetector):
    """dimvl's own detector ready for use: pictures of any size in, regions with fractional boxes out."""

    def __init__(self, network: DetectorNetwork) -> None:
        self.network = network.eval()
        self.settings = network.settings

    @classmethod
    def initialise(cls, settings: DetectorSettings, seed: int) -> "Detector":
        """Make a detector with random weights that depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(DetectorNetwork(settings))

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """Load what `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or weights and settings do not fit each other.

        """
        values = read_json(folder / SETTINGS)
        weights_path = folder / "detector.safetensors"
        try:
            settings = DetectorSettings(
                **{
                    **{name: value for name, value in values.items() if name != KIND},
                    "attributes": {name: tuple(names) for name, names in values["attributes"].items()},
                    **{name: tuple(values[name]) for name in ("classes", "channels", "anchor_sizes")},
                }
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(
                f"{folder / 'detector.json'} does not describe a detector ({error}); copy the detector's folder again"
            ) from None
        try:
            weights = safetensors.torch.load_file(weights_path)
        except FileNotFoundError:
            raise UserError(f"{weights_path} does not exist; copy the detector's whole folder") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{weights_path} is damaged ({error}); copy the detector's folder again") from None
        network = DetectorNetwork(settings)
        try:
            network.load_state_dict(weights)  # float16 on disk, the network's float32 here
        except RuntimeError:
            raise UserError(
                f"{weights_path} does not fit the settings in detector.json; copy both from the same detector"
            ) from None
        return cls(network)

    def save(self, folder: Path) -> None:
        """Write `detector.json` (settings) and `detector.safetensors` (float16 weights) into the folder."""
        with atomic_path(folder / "detector.safetensors") as temporary:
            safetensors.torch.save_file(self._stored_weights(), temporary)
        write_json(folder / SETTINGS, {KIND: "scenes", **asdict(self.settings)})

    def to(self, device: torch.device | str) -> "Detector":
        """Move the weights to a device and return the detector."""
        self.network.to(device)
        return self

    def configure(self, options: Mapping[str, Any]) -> "Detector":
        """Change what decides which boxes come out, and the side (`shortest_side`) that pictures are scaled to."""
        refuse_options(options, (*NUMBERS, "shortest_side"), self.settings.name)
        options = dict(options)
        if "shortest_side" in options:
            options["side"] = options.pop("shortest_side")
        changed: dict[str, Any] = vars(self.settings.selection.changed(options)).copy()
        if "side" in options:
            changed["side"] = side_in_pixels("shortest_side", options["side"])
        if "proposals" in options:
            changed["proposals"] = at_least_one("proposals", options["proposals"])
        self.settings = self.network.settings = replace(self.settings, **changed)
        return self

    def _stored_weights(self) -> dict[str, Tensor]:
        """Weights by name, in order, as the file keeps them."""
        weights = sorted(self.network.state_dict().items())
        stored = ((name, tensor.half() if tensor.is_floating_point() else tensor) for name, tensor in weights)
        return {name: tensor.cpu().contiguous() for name, tensor in stored}

    @property
    def extractor(self) -> Extractor:
        """Who this detector is, for the region store; saving and loading does not change it."""
        settings = self.settings
        return Extractor(
            name=settings.name,
            fingerprint=weights_fingerprint(self._stored_weights()),
            parameters={name: getattr(settings, name) for name in NUMBERS},
            feature_width=settings.class_width + settings.attribute_width,
            classes=settings.classes,
            attributes=tuple(name for names in settings.attributes.values() for name in names),
        )

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the picture as (height, width, 3) uint8 with its shorter side as configured."""
        return _scaled(image, self.settings.side)

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        """Detect in pictures of one size, (height, width, 3) uint8."""
        device = next(self.network.parameters()).device
        height, width, _ = arrays[0].shape
        pixels = torch.from_numpy(np.stack(arrays)).to(device).permute(0, 3, 1, 2)
        # The grey that normalisation maps to 0, at least two cells of the feature map.
        pixels = F.pad(pixels, (0, _padding(width), 0, _padding(height)), value=127)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
        feature_map = self.network.feature_map(pixels)
        if given is None:
            found = self.network.find(pixels, (height, width), feature_map)
        else:
            found = [rows * scale for rows in given_rows(given, device)]
        shown = [with_whole_image(rows, self.settings.whole_image, width, height) for rows in found]
        described = self.network.describe(pixels, shown, feature_map)
        return self._records(described, [rows / scale for rows in shown], [len(rows) for rows in found])

    def _records(self, described: Described, boxes: list[Tensor], objects: list[int]) -> list[Detections]:
        """Cut a described batch into pictures."""
        class_scores, class_ids = described.class_scores[:, 1:].topk(min(CLASSES_KEPT, len(self.settings.classes)), 1)
        best = [scores.max(dim=1) for scores in described.attribute_scores]
        group_sizes = [len(names) for names in self.settings.attributes.values()]
        starts = torch.tensor([0, *group_sizes[:-1]], device=class_ids.device).cumsum(0)
        return cut(
            boxes,
            objects,
            features=described.features,
            class_ids=class_ids,
            class_scores=class_scores,
            attribute_ids=torch.stack([group.indices for group in best], dim=1) + starts,
            attribute_scores=torch.stack([group.values for group in best], dim=1),
        )


def load_scene_detector() -> Detector:
    """Load the detector that is shipped with the package, for the synthetic scenes."""
    return Detector.load(SCENES_FOLDER)


def _scaled(image: Image.Image, side: int) -> np.ndarray:
    """Return the picture as (height, width, 3) uint8 with its shorter side at `side` pixels."""
    scale = min(side / min(image.size), LONGEST_TO_SHORTEST * side / max(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image.convert("RGB"))


def _padding(length: int) -> int:
    """Return the pixels that bring a side to a multiple of the stride, at least two strides."""
    return max(-length % STRIDE, 2 * STRIDE - length)
