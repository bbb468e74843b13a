"""torchvision's Faster R-CNN family: boxes, labels and scores as torchvision computes them, with features.

A region's feature is the output of the box head (1024 numbers in the published models), pooled again from the refined
box. So it is a function of image and box alone, and boxes from elsewhere are described the same way (Ren et al., 2015;
bottom-up attention, Anderson et al., 2018, takes the feature of the proposal instead). Models without a box head
(RetinaNet, FCOS, SSD) have no such feature and are refused.

Letters: P proposals, R boxes, K classes without background, F feature width.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.files.weights import save_weights
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    WEIGHTS,
    Detections,
    RegionDetector,
    padded,
    split_by_image,
)
from dimvl.regions.detectors.selection import Selection, label_first, select
from dimvl.regions.detectors.settings import TorchvisionSettings, library_settings, loaded
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.detectors.weights import fingerprint, read_weights, torchvision_weights

FAMILIES = ("fasterrcnn_", "maskrcnn_", "keypointrcnn_")  # those with a box head
SMALLEST_SIDE = 1e-2  # pixels; torchvision drops smaller boxes
COCO_OUTPUTS = 91  # background and COCO's 90 category numbers, ten of them unused


class TorchvisionDetector(RegionDetector):
    """A detector of torchvision, ready for use.

    Args:
        architecture: its name, such as `fasterrcnn_resnet50_fpn_v2`.
        network: the model.
        classes: K names, without background.

    """

    files = (WEIGHTS,)

    def __init__(self, architecture: str, network: Any, classes: Sequence[str]) -> None:
        self.architecture = architecture
        width = network.roi_heads.box_predictor.cls_score.in_features
        super().__init__(f"torchvision {architecture}", network, Selection(), width, classes)

    @classmethod
    def create(
        cls, architecture: str, weights: str | None = None, classes: Sequence[str] | None = None
    ) -> "TorchvisionDetector":
        """Make a detector by the name of its architecture.

        Args:
            architecture: its name.
            weights: a weight name of torchvision (downloaded once), or a file: `.safetensors`, or a state dictionary
                in `.pth`, which is read without pickle. By default torchvision's best.
            classes: class names for a file of weights, without background; a file with COCO's classes and a weight
                name need none.

        Raises:
            UserError: the name is unknown, or the weights do not exist, do not fit, or cannot be read or downloaded.

        """
        check_architecture(architecture)
        state, published = torchvision_weights(architecture, weights)
        if published is not None:
            if classes is not None:
                raise UserError(
                    f"torchvision's weights of {architecture} come with class names; omit the file of class names"
                )
            classes = published.meta["categories"][1:]
        scores = state.get("roi_heads.box_predictor.cls_score.weight")
        if scores is None:
            raise UserError(f"{weights} are not weights of {architecture}: they lack a box predictor; check both names")
        names = _class_names(classes, len(scores), str(weights))
        return cls._build(architecture, state, names, str(weights or architecture))

    @classmethod
    def load(cls, folder: Path) -> "TorchvisionDetector":
        """See `RegionDetector.load`."""
        settings = library_settings(folder, TorchvisionSettings)
        check_architecture(settings.name)
        file = folder / WEIGHTS
        return cls._build(settings.name, read_weights(file), settings.classes, str(file)).configure(settings.options)

    @classmethod
    def _build(
        cls, architecture: str, state: Mapping[str, Tensor], classes: Sequence[str], place: str
    ) -> "TorchvisionDetector":
        build = import_torchvision().models.get_model_builder(architecture)
        options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": len(classes) + 1}
        mismatch = f"{place} does not hold weights of {architecture} for {len(classes)} classes; check both"
        network = loaded(lambda: build(**options), state, mismatch)
        return cls(architecture, network, classes)

    def save(self, folder: Path) -> None:
        """Write settings, class names and weights."""
        save_weights(folder / WEIGHTS, self.network.state_dict())
        settings = {KIND: "torchvision", "name": self.architecture, "classes": list(self.classes), **self.parameters}
        write_json(folder / SETTINGS, settings)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.network.state_dict(), self.architecture)

    def _numbers(self) -> dict[str, int]:
        transform = self.network.transform
        return {"shortest_side": int(transform.min_size[-1]), "longest_side": int(transform.max_size)}

    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        sides = {**self._numbers(), **numbers}
        transform = self.network.transform
        transform.min_size, transform.max_size = (sides["shortest_side"],), sides["longest_side"]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the image as (height, width, 3) uint8; torchvision scales it, on the device."""
        return np.asarray(image)

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2).float().div(255)
        images, _ = self.network.transform(list(pixels))
        maps = self.network.backbone(images.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        height, width = images.image_sizes[0]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        # The pooling uses the images' size only to infer the scale of the maps, and keeps its first answer for good:
        # the padded size always gives the right one.
        shapes = [tuple(images.tensors.shape[2:])] * len(arrays)
        if given is None:
            found, labels, probabilities = self._find(images, maps, shapes)
        else:
            found = self._given(given, scale)
        shown = [self._with_whole_image(rows, width, height) for rows in found]
        rows = self._box_rows(maps, shown, shapes)
        if given is None:
            class_labels, class_probabilities = padded(labels, shown), padded(probabilities, shown)
        else:
            logits, _ = self.network.roi_heads.box_predictor(rows)
            class_probabilities = logits.softmax(-1)[:, 1:]
            class_labels = class_probabilities.argmax(1)
        class_ids, class_scores = label_first(class_probabilities, class_labels, CLASSES_KEPT)
        fractions = [boxes / scale for boxes in shown]
        return split_by_image(found, fractions, features=rows, class_ids=class_ids, class_scores=class_scores)

    def _box_rows(self, maps: Mapping[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, ...]]) -> Tensor:
        """Return the box head's rows (N, F) for boxes in pixels of the scaled images."""
        heads = self.network.roi_heads
        return heads.box_head(heads.box_roi_pool(maps, boxes, shapes))

    def _find(
        self, images: Any, maps: Mapping[str, Tensor], shapes: list[tuple[int, ...]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Find boxes (R, 4) in pixels of the scaled images, their labels (R,) and class probabilities (R, K)."""
        heads = self.network.roi_heads
        proposals, _ = self.network.rpn(images, maps)
        logits, corrections = heads.box_predictor(self._box_rows(maps, proposals, shapes))
        counts = [len(rows) for rows in proposals]
        every_box = heads.box_coder.decode(corrections, proposals).split(counts)  # (P, K + 1, 4) each
        clip = import_torchvision().ops.clip_boxes_to_image
        found, labels, probabilities = [], [], []
        for boxes, rows, extent in zip(every_box, logits.softmax(-1).split(counts), images.image_sizes, strict=True):
            rows, classes = rows[:, 1:], rows.shape[1] - 1
            corners = clip(boxes, extent)[:, 1:].reshape(-1, 4)  # every class of every proposal is a candidate
            large = ((corners[:, 2:] - corners[:, :2]) >= SMALLEST_SIDE).all(1).nonzero()[:, 0]
            chosen = select(corners[large], rows.reshape(-1)[large], large % classes, self.selection)
            candidates = large[chosen.to(large.device)]
            found.append(corners[candidates])
            labels.append(candidates % classes)
            probabilities.append(rows[candidates // classes])
        return found, labels, probabilities


def check_architecture(name: str) -> None:
    """Raise a `UserError`, which lists the valid names, if torchvision has no such detector with a box head."""
    torchvision = import_torchvision()
    names = torchvision.models.list_models(module=torchvision.models.detection)
    usable = [other for other in names if other.startswith(FAMILIES)]
    if name in names and name not in usable:
        raise UserError(f"torchvision's {name} has no box head to take region features from; use {', '.join(usable)}")
    if name not in usable:
        raise UserError(
            f"detector {name} is neither a folder here nor one of torchvision's; use a folder, a name of the Hugging "
            f"Face hub (owner/name), scenes, or {', '.join(usable)}"
        )


def _class_names(classes: Sequence[str] | None, outputs: int, place: str) -> Sequence[str]:
    """Return the class names of a file of weights; COCO's where their number says so."""
    if classes is None and outputs == COCO_OUTPUTS:
        detection = import_torchvision().models.detection
        return list(detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
    if classes is None or len(classes) != outputs - 1:
        given = "no names are given" if classes is None else f"{len(classes)} names are given"
        raise UserError(
            f"{place} has {outputs - 1} classes but {given}; give a file of {outputs - 1} names, one per line"
        )
    return classes
