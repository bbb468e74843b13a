"""Detectors of the library transformers: the DETR family, with the decoder's state of each query as feature.

DETR (Carion et al., 2020) gives one box, class distribution and decoder state for each of a fixed number of queries;
RT-DETR (Zhao et al., 2024) and its successors judge each class by itself. A query finds its own box, so given boxes
cannot be described. The whole image, where it is asked for, has the mean state of all queries, whichever are kept.

transformers is imported when a detector is loaded, behind `import_torchvision`: it imports torchvision where that is
installed. Pictures are scaled by the model's own image processor in its PIL form, which gives the same pixels on every
machine. Letters: B pictures, Q queries, R regions, K classes, F feature width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    Detections,
    RegionDetector,
    cannot_describe,
    cut,
    refuse_options,
    side_in_pixels,
    weights_fingerprint,
    with_whole_image,
)
from dimvl.regions.detectors.selection import Selection, label_first, select
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.records import Extractor

SOFTMAX = ("detr", "table-transformer")  # the last class is "no object"
SIGMOID = ("rt_detr", "rt_detr_v2", "d_fine")  # each class by itself
SIDES = {"shortest_edge": "shortest_side", "longest_edge": "longest_side", "height": "height", "width": "width"}
"""Sizes of an image processor, and what they are called here."""
PIXELS = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
"""Settings of an image processor, beside the sizes, that change the features."""


class TransformersDetector(RegionDetector):
    """A detector of transformers, ready for use.

    Args:
        name: readable name.
        model: the network, as `AutoModelForObjectDetection` gives it.
        processor: its image processor.
        selection: which queries become regions.

    """

    describes = False

    def __init__(self, name: str, model: Any, processor: Any, selection: Selection) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.selection = selection
        self.softmax = model.config.model_type in SOFTMAX

    @classmethod
    def load(cls, place: str | Path, settings: Mapping[str, Any]) -> "TransformersDetector":
        """Load a detector.

        Args:
            place: a folder of `save_pretrained`, or a name on the hub, `owner/name` or `owner/name@revision`.
            settings: what `detector.json` of the folder says; empty without one.

        Raises:
            UserError: transformers is missing, there is no such detector, it is of another family, or its weights are
                not safetensors.

        """
        name = str(settings.get("name", place.name if isinstance(place, Path) else place))
        model, processor = _open(place)
        # A query has one box and few are alike: nothing is suppressed unless it is asked for, as in the library.
        made = cls(name, model, processor, Selection(nms_threshold=1.0))
        return made.configure({key: value for key, value in settings.items() if key not in (KIND, "name")})

    def configure(self, options: Mapping[str, Any]) -> "TransformersDetector":
        """Change the selection, or the sizes that the image processor has (pixels of the scaled picture)."""
        refuse_options(options, tuple(self.parameters), self.name)
        self.selection = self.selection.changed(options)
        size = {edge: side_in_pixels(side, options[side]) for edge, side in SIDES.items() if side in options}
        self.processor.size = replace(self.processor.size, **size)
        return self

    @property
    def parameters(self) -> dict[str, float | int | str | bool]:
        """What can be set, by name."""
        size = self.processor.size
        sides = {side: int(size[edge]) for edge, side in SIDES.items() if size[edge] is not None}
        return {**sides, **vars(self.selection)}

    @cached_property
    def _fingerprint(self) -> str:
        settings = [f"{name}={getattr(self.processor, name, None)}" for name in PIXELS]
        return weights_fingerprint(self.model.state_dict(), *settings)

    @property
    def extractor(self) -> Extractor:
        """Who this detector is, for the region store."""
        config = self.model.config
        return Extractor(
            name=self.name,
            fingerprint=self._fingerprint,
            parameters=self.parameters,
            feature_width=config.d_model,
            classes=tuple(str(config.id2label[label]) for label in range(config.num_labels)),
            attributes=(),
        )

    def to(self, device: torch.device | str) -> "TransformersDetector":
        """Move the weights to a device and return the detector."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write `detector.json` and what transformers' `save_pretrained` writes, safetensors, into the folder."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_json(folder / SETTINGS, {KIND: "transformers", "name": self.name, **self.parameters})

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the picture as the image processor gives it, (3, height, width) float32."""
        # Said outright, since the processor cannot tell the channels of a picture three pixels high.
        inputs = self.processor(images=[np.asarray(image)], return_tensors="np", input_data_format="channels_last")
        return np.asarray(inputs["pixel_values"][0], dtype=np.float32)

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        if given is not None:
            raise cannot_describe(self.name)
        device = next(self.model.parameters()).device
        output = self.model(pixel_values=torch.from_numpy(np.stack(arrays)).to(device))
        probabilities = output.logits.softmax(-1)[..., :-1] if self.softmax else output.logits.sigmoid()
        centres, sides = output.pred_boxes.split(2, dim=-1)
        corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
        boxes, objects, features, rows, labels = [], [], [], [], []
        for own, own_corners, states in zip(probabilities, corners, output.last_hidden_state, strict=True):
            queries, label = self._find(own, own_corners)
            boxes.append(with_whole_image(own_corners[queries], self.selection.whole_image))
            objects.append(len(queries))
            more = len(boxes[-1]) - len(queries)
            features.append(torch.cat([states[queries], states.mean(0, keepdim=True).expand(more, -1)]))
            rows.append(torch.cat([own[queries], own.new_zeros(more, own.shape[1])]))
            labels.append(torch.cat([label, label.new_zeros(more)]))
        class_ids, class_scores = label_first(torch.cat(rows), torch.cat(labels), CLASSES_KEPT)
        return cut(boxes, objects, features=torch.cat(features), class_ids=class_ids, class_scores=class_scores)

    def _find(self, probabilities: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Choose among the queries of one picture.

        Args:
            probabilities: (Q, K).
            corners: (Q, 4) fractions.

        Returns:
            Queries (R,), best first, and their labels (R,).

        """
        if self.softmax:
            scores, labels = probabilities.max(-1)
            queries = torch.arange(len(scores), device=scores.device)
        else:  # a query may be found by several classes
            scores, flat = probabilities.flatten().topk(len(probabilities))
            queries, labels = flat // probabilities.shape[1], flat % probabilities.shape[1]
        chosen = select(corners[queries], scores, labels, self.selection).to(scores.device)
        return queries[chosen], labels[chosen]


def _open(place: str | Path) -> tuple[Any, Any]:
    """Open model and image processor."""
    import_torchvision()
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
        from transformers.utils import logging as transformers_logging
    except ImportError:
        raise UserError("detectors of transformers need it installed: pip install 'dimvl[detectors]'") from None
    transformers_logging.disable_progress_bar()
    try:
        family = AutoConfig.from_pretrained(_fetched(place, "*.json")).model_type
        if family not in (*SOFTMAX, *SIGMOID):
            raise UserError(
                f"detector {place} is of the family {family}; those that work are {', '.join((*SOFTMAX, *SIGMOID))}"
            )
        folder = _fetched(place, "*.json", "*.safetensors")
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        model = AutoModelForObjectDetection.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # missing files, no network, another format, a missing extra: many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"detector {place} cannot be loaded by transformers ({reason}); check name, files and network"
        ) from None
    return model, processor


def _fetched(place: str | Path, *patterns: str) -> Path:
    """A folder with such files: that which was given, or that of a name on the hub, downloaded once.

    Without a network this fails at once, or finds what was downloaded before; `from_pretrained` would try for half a
    minute, with warnings.
    """
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download

    name, _, revision = place.partition("@")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
