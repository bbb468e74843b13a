"""The detector ready for use: pictures in, regions out (boxes, features, class and attribute probabilities).

Stands between the pictures and the region store; the network itself is in `dimvl.regions.detector_network`. A detector
is a folder of two files, `detector.json` (settings) and `detector.safetensors` (weights), which an exported model
carries with it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import atomic_path, read_json, write_json
from dimvl.regions.detector_network import STRIDE, Described, DetectorNetwork, DetectorSettings
from dimvl.regions.records import Extractor

CLASSES_KEPT = 5
BATCH = 16  # pictures at once: more is no faster on a CPU
LONGEST_TO_SHORTEST = 4  # a longer picture is scaled down further, so that a panorama costs no more than four squares
SCENES_FOLDER = Path(__file__).parent / "weights" / "scenes"


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one picture, best first: the arrays of `dimvl.regions.records.Regions`."""

    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    attribute_ids: np.ndarray
    attribute_scores: np.ndarray


class Detector:
    """A detector ready for use: pictures of any size in, regions with fractional boxes out."""

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
        values = read_json(folder / "detector.json")
        weights_path = folder / "detector.safetensors"
        try:
            settings = DetectorSettings(
                **{
                    **values,
                    "attributes": {name: tuple(names) for name, names in values["attributes"].items()},
                    **{name: tuple(values[name]) for name in ("classes", "channels", "anchor_sizes")},
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
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
        write_json(folder / "detector.json", asdict(self.settings))

    def _stored_weights(self) -> dict[str, Tensor]:
        """Weights by name, in order, as the file keeps them."""
        weights = sorted(self.network.state_dict().items())
        stored = ((name, tensor.half() if tensor.is_floating_point() else tensor) for name, tensor in weights)
        return {name: tensor.cpu().contiguous() for name, tensor in stored}

    @property
    def extractor(self) -> Extractor:
        """Who this detector is, for the region store; saving and loading does not change it."""
        digest = hashlib.sha256()
        for name, tensor in self._stored_weights().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.numpy().tobytes())
        settings = self.settings
        numbers = ("side", "proposals", "score_threshold", "nms_threshold", "max_regions")
        return Extractor(
            name=settings.name,
            fingerprint=digest.hexdigest(),
            parameters={name: getattr(settings, name) for name in numbers},
            feature_width=settings.class_width + settings.attribute_width,
            classes=settings.classes,
            attributes=tuple(name for names in settings.attributes.values() for name in names),
        )

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray] | None = None) -> list[Detections]:
        """Find and describe the objects of pictures; a picture in which nothing is found gives itself as one region.

        What is found in a picture does not depend on the pictures beside it: only pictures of equal size, once scaled,
        run together.

        Args:
            images: upright RGB pictures of any size.
            boxes: for each picture (R, 4) corners x1, y1, x2, y2 as fractions of width and height to describe
                instead of looking for objects; kept in their order.

        Returns:
            One `Detections` per picture. The region of a picture without objects has class -1 and score 0.

        """
        arrays = [_scaled(image, self.settings.side) for image in images]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, array in enumerate(arrays):
            by_shape.setdefault(array.shape, []).append(index)
        results: dict[int, Detections] = {}
        for indices in by_shape.values():
            for start in range(0, len(indices), BATCH):
                chunk = indices[start : start + BATCH]
                given = None if boxes is None else [boxes[index] for index in chunk]
                results.update(zip(chunk, self._detect_equal([arrays[index] for index in chunk], given), strict=True))
        return [results[index] for index in range(len(arrays))]

    def _detect_equal(self, arrays: list[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
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
            found = [torch.from_numpy(np.array(rows, np.float32).reshape(-1, 4)).to(device) * scale for rows in given]
        shown = [rows if len(rows) else scale.new_tensor([[0, 0, width, height]]) for rows in found]
        described = self.network.describe(pixels, shown, feature_map)
        return self._records(described, [rows / scale for rows in shown], [len(rows) > 0 for rows in found])

    def _records(self, described: Described, boxes: list[Tensor], has_objects: list[bool]) -> list[Detections]:
        """Cut a described batch into pictures."""
        kept = min(CLASSES_KEPT, len(self.settings.classes))
        class_scores, class_ids = described.class_scores[:, 1:].topk(kept, dim=1)
        best = [scores.max(dim=1) for scores in described.attribute_scores]
        group_sizes = [len(names) for names in self.settings.attributes.values()]
        starts = np.cumsum([0, *group_sizes[:-1]])
        attribute_ids = torch.stack([group.indices for group in best], dim=1).cpu().numpy() + starts
        columns = (
            described.features.cpu().numpy().astype(np.float16),
            class_ids.cpu().numpy().astype(np.int16),
            class_scores.cpu().numpy().astype(np.float16),
            attribute_ids.astype(np.int16),
            torch.stack([group.values for group in best], dim=1).cpu().numpy().astype(np.float16),
        )
        ends = np.cumsum([len(rows) for rows in boxes])
        detections = []
        for rows, end, objects in zip(boxes, ends, has_objects, strict=True):
            features, ids, scores, attributes, attribute_scores = (column[end - len(rows) : end] for column in columns)
            detections.append(
                Detections(
                    boxes=rows.clamp(0, 1).cpu().numpy(),
                    features=features,
                    class_ids=ids if objects else np.full_like(ids, -1),
                    class_scores=scores if objects else np.zeros_like(scores),
                    attribute_ids=attributes if objects else np.full_like(attributes, -1),
                    attribute_scores=attribute_scores if objects else np.zeros_like(attribute_scores),
                )
            )
        return detections


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
