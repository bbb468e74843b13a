"""torchvision's Faster R-CNN family as detectors: boxes, labels and scores as torchvision gives them, with features.

A region's feature is what the box head makes of it (1024 numbers in the published models), pooled anew from the refined
box: so it is a function of picture and box alone, and given boxes are described the same way (Ren et al., 2015;
bottom-up attention, Anderson et al., 2018, takes the feature of the proposal). Models without a box head (RetinaNet,
FCOS, SSD) have no such feature and are refused.

Letters: P proposals, R boxes, K classes without background, F feature width.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.files import atomic_path, write_json
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    Detections,
    RegionDetector,
    cut,
    given_rows,
    refuse_options,
    side_in_pixels,
    weights_fingerprint,
    with_whole_image,
)
from dimvl.regions.detectors.selection import Selection, label_first, select
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.records import Extractor

WEIGHTS = "detector.safetensors"
FAMILIES = ("fasterrcnn_", "maskrcnn_", "keypointrcnn_")  # those with a box head
LEAST_SIDE = 1e-2  # pixels; torchvision drops what is smaller
COCO_OUTPUTS = 91  # background and COCO's 90 category numbers, ten of them unused


class TorchvisionDetector(RegionDetector):
    """A detector of torchvision, ready for use.

    Args:
        name: of the architecture, such as `fasterrcnn_resnet50_fpn_v2`.
        model: the network.
        classes: K names, without background.
        selection: which candidates become regions.

    """

    def __init__(self, name: str, model: nn.Module, classes: Sequence[str], selection: Selection) -> None:
        self.name = name
        self.model: Any = model.eval()
        self.classes = tuple(classes)
        self.selection = selection

    @classmethod
    def create(
        cls, name: str, weights: str | None = None, classes: Sequence[str] | None = None
    ) -> "TorchvisionDetector":
        """Make a detector by name.

        Args:
            name: of the architecture.
            weights: a weight name of torchvision (downloaded once), or a file of weights: `.safetensors`, or a state
                dictionary in `.pth`, which is read without pickle. By default torchvision's best.
            classes: names for a file's classes, background left out; not needed for COCO's or a weight name's.

        Raises:
            UserError: no such detector or weights, they do not fit, or cannot be read or downloaded.

        """
        check_name(name)
        if weights is not None and Path(weights).suffix in (".pth", ".pt", ".safetensors"):
            state = read_state(Path(weights))
        else:
            state, found = _published_weights(name, weights)
            if classes is not None:
                raise UserError(f"torchvision's weights of {name} bring their class names; leave out the given ones")
            classes = found
        scores = state.get("roi_heads.box_predictor.cls_score.weight")
        if scores is None:
            raise UserError(f"{weights} are not weights of {name}: a box predictor is missing; check both names")
        return cls._build(name, state, _class_names(classes, len(scores), str(weights)), str(weights or name))

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any]) -> "TorchvisionDetector":
        """Load what `save` wrote, `settings` being what `detector.json` says.

        Raises:
            UserError: a file is missing or damaged, or weights and settings do not fit each other.

        """
        try:
            name, classes = str(settings["name"]), [str(label) for label in settings["classes"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / SETTINGS} does not describe a detector ({error}); copy the detector's folder again"
            ) from None
        check_name(name)
        own = {key: value for key, value in settings.items() if key not in (KIND, "name", "classes")}
        return cls._build(name, read_state(folder / WEIGHTS), classes, str(folder / WEIGHTS)).configure(own)

    @classmethod
    def _build(
        cls, name: str, state: Mapping[str, Tensor], classes: Sequence[str], place: str
    ) -> "TorchvisionDetector":
        build = import_torchvision().models.get_model_builder(name)
        model = build(weights=None, weights_backbone=None, num_classes=len(classes) + 1)
        try:
            model.load_state_dict(state)
        except RuntimeError:
            raise UserError(f"{place} does not hold weights of {name} for {len(classes)} classes; check both") from None
        return cls(name, model, classes, Selection())

    def configure(self, options: Mapping[str, Any]) -> "TorchvisionDetector":
        """Change the selection, `shortest_side` or `longest_side` (pixels of the scaled picture)."""
        refuse_options(options, tuple(self.parameters), self.name)
        self.selection = self.selection.changed(options)
        if "shortest_side" in options:
            self.model.transform.min_size = (side_in_pixels("shortest_side", options["shortest_side"]),)
        if "longest_side" in options:
            self.model.transform.max_size = side_in_pixels("longest_side", options["longest_side"])
        return self

    @property
    def parameters(self) -> dict[str, float | int | str | bool]:
        """What can be set, by name."""
        transform = self.model.transform
        sides = {"shortest_side": int(transform.min_size[-1]), "longest_side": int(transform.max_size)}
        return {**sides, **vars(self.selection)}

    @cached_property
    def _fingerprint(self) -> str:
        return weights_fingerprint(self.model.state_dict(), self.name)

    @property
    def extractor(self) -> Extractor:
        """Who this detector is, for the region store."""
        return Extractor(
            name=f"torchvision {self.name}",
            fingerprint=self._fingerprint,
            parameters=self.parameters,
            feature_width=self.model.roi_heads.box_predictor.cls_score.in_features,
            classes=self.classes,
            attributes=(),
        )

    def to(self, device: torch.device | str) -> "TorchvisionDetector":
        """Move the weights to a device and return the detector."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write `detector.json` and `detector.safetensors` into the folder."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            safetensors.torch.save_file(weights, temporary)
        settings = {KIND: "torchvision", "name": self.name, "classes": list(self.classes), **self.parameters}
        write_json(folder / SETTINGS, settings)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the picture as (height, width, 3) uint8; torchvision scales it, on the device."""
        return np.asarray(image)

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.stack(arrays)).to(device).permute(0, 3, 1, 2).float().div(255)
        images, _ = self.model.transform(list(pixels))
        maps = self.model.backbone(images.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        height, width = images.image_sizes[0]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
        # What the pooling is told of the pictures' size only serves to infer the scale of the maps, and it keeps the
        # first answer for good: the padded size is the one that always gives the right one.
        shapes = [tuple(images.tensors.shape[2:])] * len(arrays)
        if given is None:
            found, labels, probabilities = self._find(images, maps, shapes)
        else:
            found, labels, probabilities = [rows * scale for rows in given_rows(given, device)], None, None
        shown = [with_whole_image(rows, self.selection.whole_image, width, height) for rows in found]
        rows = self._box_rows(maps, shown, shapes)
        if labels is None or probabilities is None:
            logits, _ = self.model.roi_heads.box_predictor(rows)
            class_probabilities = logits.softmax(-1)[:, 1:]
            class_labels = class_probabilities.argmax(1)
        else:
            class_labels, class_probabilities = _padded(labels, probabilities, shown)
        class_ids, class_scores = label_first(class_probabilities, class_labels, CLASSES_KEPT)
        fractions = [rows / scale for rows in shown]
        objects = [len(rows) for rows in found]
        return cut(fractions, objects, features=rows, class_ids=class_ids, class_scores=class_scores)

    def _box_rows(self, maps: Mapping[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, ...]]) -> Tensor:
        """Return the box head's rows (N, F) of boxes in pixels of the scaled pictures."""
        heads = self.model.roi_heads
        return heads.box_head(heads.box_roi_pool(maps, boxes, shapes))

    def _find(
        self, images: Any, maps: Mapping[str, Tensor], shapes: list[tuple[int, ...]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Find boxes (R, 4) in pixels of the scaled pictures, their labels (R,) and class probabilities (R, K)."""
        heads = self.model.roi_heads
        proposals, _ = self.model.rpn(images, maps)
        logits, corrections = heads.box_predictor(self._box_rows(maps, proposals, shapes))
        counts = [len(rows) for rows in proposals]
        every_box = heads.box_coder.decode(corrections, proposals).split(counts)  # (P, K + 1, 4) each
        clip = import_torchvision().ops.clip_boxes_to_image
        found, labels, probabilities = [], [], []
        for boxes, rows, extent in zip(every_box, logits.softmax(-1).split(counts), images.image_sizes, strict=True):
            rows, classes = rows[:, 1:], rows.shape[1] - 1
            corners = clip(boxes, extent)[:, 1:].reshape(-1, 4)  # every class of every proposal is a candidate
            large = ((corners[:, 2:] - corners[:, :2]) >= LEAST_SIDE).all(1).nonzero()[:, 0]
            chosen = select(corners[large], rows.reshape(-1)[large], large % classes, self.selection)
            candidates = large[chosen.to(large.device)]
            found.append(corners[candidates])
            labels.append(candidates % classes)
            probabilities.append(rows[candidates // classes])
        return found, labels, probabilities


def check_name(name: str) -> None:
    """Check that torchvision has a detector of that name with a box head.

    Raises:
        UserError: it has not; names those that it has.

    """
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


def read_state(file: Path) -> dict[str, Tensor]:
    """Read weights by name: safetensors, or `.pth` without pickle.

    Raises:
        UserError: the file is missing, damaged or holds something else.

    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; check the path")
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what it may not, a torn zip file, a wrong header: many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read as plain weights ({reason}); save its state_dict alone") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # as torchvision's own training script saves
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} does not hold weights by name; save the model's state_dict")
    return state


def _published_weights(name: str, weights: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """Download weights of torchvision once, and their class names without background."""
    members = import_torchvision().models.get_model_weights(name)
    if weights is not None and weights not in members.__members__:
        raise UserError(
            f"{name} has no weights {weights}; use {', '.join(members.__members__)}, or a file ending in .pth or "
            ".safetensors"
        )
    chosen = members[weights or "DEFAULT"]
    try:
        state = torch.hub.load_state_dict_from_url(
            chosen.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights {chosen.name} of {name} cannot be downloaded ({error}); give a file of weights instead"
        ) from None
    return dict(state), list(chosen.meta["categories"][1:])


def _class_names(classes: Sequence[str] | None, outputs: int, place: str) -> Sequence[str]:
    """Return the names of a file's classes; COCO's where the number says so."""
    if classes is None and outputs == COCO_OUTPUTS:
        torchvision = import_torchvision()
        coco = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
        return list(coco.meta["categories"][1:])
    if classes is None or len(classes) != outputs - 1:
        given = "none are given" if classes is None else f"{len(classes)} names are given"
        raise UserError(f"{place} knows {outputs - 1} classes but {given}; give a file of as many names, one a line")
    return classes


def _padded(labels: list[Tensor], probabilities: list[Tensor], shown: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Join labels and probabilities of pictures, with rows for the whole images that follow their objects."""
    label_parts, rows = [], []
    for own_labels, own, boxes in zip(labels, probabilities, shown, strict=True):
        more = len(boxes) - len(own)
        label_parts.append(torch.cat([own_labels, own_labels.new_zeros(more)]))
        rows.append(torch.cat([own, own.new_zeros(more, own.shape[1])]))
    return torch.cat(label_parts), torch.cat(rows)
