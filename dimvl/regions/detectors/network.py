"""The detector's network: pixels to boxes, features, class and attribute scores.

A torchvision Faster R-CNN (Ren et al., 2015) with a slim backbone and attribute heads, small enough to train and run on
a CPU. It differs from torchvision's own in three ways, all for the sake of region features:

- Boxes are found first and described afterwards: each refined box is pooled again, so feature, class and attributes are
  functions of image and box alone, and boxes from elsewhere (ground truth, for example) are described the same way.
- A box is never returned twice with different classes; its class probabilities stay together.
- Attributes have hidden layers of their own. The region feature joins the last hidden layer before the class scores and
  the last one before the attribute scores: it contains linearly what is supervised, and hardly anything else.

torchvision is imported when a network is constructed, not with this module. Letters: B images, R boxes, K classes,
C channels, F feature width. All boxes are in pixels of the scaled image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dimvl.regions.detectors.selection import Selection, select
from dimvl.regions.detectors.torchvision_ops import import_torchvision

STRIDES = (2, 2, 1, 2, 1, 1)  # of the six convolutions; the last is dilated to see around an object
STRIDE = 8
POOLED = 5  # bins of a box along each side
Size = Annotated[int, Field(ge=1, le=4096)]
"""A whole number that a saved detector may have; the bounds are checked when it is loaded."""
FeatureMap = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """The shapes of a detector's weights, and the settings that decide which boxes it returns.

    Attributes:
        name: readable name of the extractor.
        classes: K class names.
        attributes: names by attribute group, groups in the order of a phrase; a region has one attribute per group.
        channels: channels of the six convolutions.
        anchor_sizes: sides of the square anchors in pixels.
        head_width: first hidden layer of the class path.
        attribute_head_width: first hidden layer of the attribute path.
        class_width: last hidden layer before the class scores, the first part of the region feature.
        attribute_width: last hidden layer before the attribute scores, the second part of the region feature.
        side: shorter side in pixels that images are scaled to.
        proposals: number of boxes of the region proposal network that are classified.
        score_threshold: see `Selection`, like the next four.
        nms_threshold: applies to boxes of different classes, too.
        min_regions: per image.
        max_regions: per image.
        whole_image: whether the whole image is appended.

    """

    name: str = "scenes-faster-rcnn"
    classes: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    channels: Annotated[tuple[Size, ...], Field(min_length=len(STRIDES), max_length=len(STRIDES))] = (
        *(24, 48, 48),
        *(96, 96, 96),
    )
    anchor_sizes: Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)] = (25, 46)
    head_width: Size = 256
    attribute_head_width: Size = 128
    class_width: Size = 64
    attribute_width: Size = 64
    side: Size = 160
    proposals: Size = 40
    score_threshold: float = 0.4
    nms_threshold: float = 0.5
    min_regions: int = 0
    max_regions: int = 36
    whole_image: bool = False

    @property
    def selection(self) -> Selection:
        """The settings that decide which boxes become regions; a `UserError` if one is out of range."""
        return Selection(**{field.name: getattr(self, field.name) for field in fields(Selection)})


@dataclass(frozen=True)
class Described:
    """The heads' outputs for the boxes of a batch.

    Attributes:
        features: (R, F).
        class_scores: (R, K + 1) probabilities, background first.
        attribute_scores: one (R, names) tensor of probabilities per attribute group.

    """

    features: Tensor
    class_scores: Tensor
    attribute_scores: list[Tensor]


class Backbone(nn.Sequential):
    """Six 3x3 convolutions with batch normalisation: (B, 3, height, width) to (B, C, height / 8, width / 8)."""

    def __init__(self, channels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for index, (width, stride) in enumerate(zip(channels, STRIDES, strict=True)):
            dilation = 2 if index == len(STRIDES) - 1 else 1
            before = channels[index - 1] if index else 3
            layers.append(nn.Conv2d(before, width, 3, stride, dilation, dilation, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.out_channels = channels[-1]  # torchvision reads it


class BoxPredictor(nn.Module):
    """Class scores through a hidden layer, box corrections without it; torchvision's heads call it."""

    def __init__(self, width: int, hidden_width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, hidden_width), nn.ReLU())
        self.class_scores = nn.Linear(hidden_width, num_classes + 1)
        self.corrections = nn.Linear(width, 4 * (num_classes + 1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (R, K + 1) class logits, background first, and (R, 4 * (K + 1)) box corrections."""
        return self.class_scores(self.hidden(rows)), self.corrections(rows)


class AttributeHeads(nn.Module):
    """One softmax per attribute group over a hidden layer that sees the pooled box and the box's size.

    Pooling removes the size of a box, which attributes such as "large" depend on.
    """

    def __init__(self, pooled_width: int, width: int, hidden_width: int, group_sizes: Iterable[int]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(pooled_width + 2, width), nn.ReLU(), nn.Linear(width, hidden_width), nn.ReLU()
        )
        self.groups = nn.ModuleList(nn.Linear(hidden_width, size) for size in group_sizes)

    def hidden_rows(self, pooled: Tensor, boxes: Tensor) -> Tensor:
        """Return the (R, attribute_width) rows for pooled boxes (R, C, 5, 5) with corners (R, 4) in pixels."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
        return self.hidden(torch.cat([pooled.flatten(1), (sides / 32).log()], dim=1))

    def forward(self, rows: Tensor) -> list[Tensor]:
        """Return one (R, names) tensor of logits per group."""
        return [group(rows) for group in self.groups]


class DetectorNetwork(nn.Module):
    """Pixels to boxes, features, class and attribute scores; boxes are in pixels of the scaled image."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        torchvision = import_torchvision()
        detection = torchvision.models.detection
        self.settings = settings
        backbone = Backbone(settings.channels)
        pooled_width = backbone.out_channels * POOLED**2
        num_classes = len(settings.classes)
        self.faster_rcnn = detection.FasterRCNN(
            backbone,
            rpn_anchor_generator=detection.rpn.AnchorGenerator((settings.anchor_sizes,), ((1.0,),)),
            box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], POOLED, sampling_ratio=2),
            box_head=nn.Sequential(nn.Flatten(), nn.Linear(pooled_width, settings.head_width), nn.ReLU()),
            box_predictor=BoxPredictor(settings.head_width, settings.class_width, num_classes),
            rpn_pre_nms_top_n_train=300,
            rpn_post_nms_top_n_train=80,
            rpn_pre_nms_top_n_test=150,
            rpn_post_nms_top_n_test=settings.proposals,
            rpn_batch_size_per_image=64,
            box_batch_size_per_image=32,
            box_positive_fraction=0.5,
        )
        self.attribute_heads = AttributeHeads(
            pooled_width,
            settings.attribute_head_width,
            settings.attribute_width,
            [len(names) for names in settings.attributes.values()],
        )

    def losses(self, pixels: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Torchvision's four losses, and a cross entropy per attribute group on the boxes that match an object.

        Args:
            pixels: (B, 3, height, width) uint8, sides multiples of 8.
            targets: one per image: `boxes` (N, 4) float corners in pixels, `labels` (N,) int64 from 1,
                `attributes` (N, groups) int64 within each group; -100 is ignored.

        Returns:
            Losses by name, to be summed.

        """
        heads = self.faster_rcnn.roi_heads
        feature_map = self.feature_map(pixels)
        proposals, losses = self._propose(pixels, (pixels.shape[2], pixels.shape[3]), feature_map, targets)
        proposals, matches, labels, corrections = heads.select_training_samples(proposals, targets)
        pooled = self._pool(pixels, feature_map, proposals)
        logits, predicted = heads.box_predictor(heads.box_head(pooled))
        loss_function = import_torchvision().models.detection.roi_heads.fastrcnn_loss
        losses["class"], losses["box"] = loss_function(logits, predicted, labels, corrections)
        held = torch.cat(labels) > 0
        wanted = torch.cat([target["attributes"][match] for target, match in zip(targets, matches, strict=True)])[held]
        attribute_scores = self.attribute_heads(self.attribute_heads.hidden_rows(pooled, torch.cat(proposals))[held])
        for index, (name, scores) in enumerate(zip(self.settings.attributes, attribute_scores, strict=True)):
            known = (wanted[:, index] >= 0).sum().clamp(min=1)
            losses[name] = F.cross_entropy(scores, wanted[:, index], reduction="sum") / known
        return losses

    def find(self, pixels: Tensor, extent: tuple[int, int], feature_map: FeatureMap) -> list[Tensor]:
        """Find the boxes of a batch of images of one size, (R, 4) corners in pixels per image, best first.

        Args:
            pixels: (B, 3, height, width) uint8, sides multiples of 8.
            extent: height and width in pixels without the padding.
            feature_map: of these pixels.

        """
        heads = self.faster_rcnn.roi_heads
        proposals, _ = self._propose(pixels, extent, feature_map)
        logits, corrections = heads.box_predictor(heads.box_head(self._pool(pixels, feature_map, proposals)))
        scores, classes = logits.softmax(-1)[:, 1:].max(-1)
        every_class = heads.box_coder.decode(corrections, proposals)  # (R, K + 1, 4)
        boxes = every_class[torch.arange(len(classes), device=classes.device), classes + 1]
        boxes = import_torchvision().ops.clip_boxes_to_image(boxes, extent)
        scores = scores * ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1)  # drops boxes narrower than a pixel
        found = self._keep_best(boxes, scores, classes, [len(rows) for rows in proposals])
        # Scored again from the refined boxes, and suppressed across classes: two proposals of one object may have
        # different classes.
        scores = self.describe(pixels, found, feature_map).class_scores[:, 1:].amax(-1)
        return self._keep_best(torch.cat(found), scores, torch.zeros_like(scores), [len(rows) for rows in found])

    def _keep_best(self, boxes: Tensor, scores: Tensor, classes: Tensor, counts: list[int]) -> list[Tensor]:
        """Select among the boxes of each image, suppressing within each class."""
        result = []
        for rows, own, labels in zip(boxes.split(counts), scores.split(counts), classes.split(counts), strict=True):
            result.append(rows[select(rows, own, labels, self.settings.selection).to(rows.device)])
        return result

    def describe(self, pixels: Tensor, boxes: list[Tensor], feature_map: FeatureMap) -> Described:
        """Describe boxes, (R, 4) corners in pixels for each image of a batch."""
        heads = self.faster_rcnn.roi_heads
        pooled = self._pool(pixels, feature_map, boxes)
        class_rows = heads.box_predictor.hidden(heads.box_head(pooled))
        attribute_rows = self.attribute_heads.hidden_rows(pooled, torch.cat(boxes))
        return Described(
            torch.cat([class_rows, attribute_rows], dim=1),
            heads.box_predictor.class_scores(class_rows).softmax(-1),
            [scores.softmax(-1) for scores in self.attribute_heads(attribute_rows)],
        )

    def feature_map(self, pixels: Tensor) -> FeatureMap:
        """Run the backbone on (B, 3, height, width) uint8 pixels; torchvision expects its output by level name."""
        return {"0": self.faster_rcnn.backbone((pixels.float() - 127.5) / 64)}

    def _propose(
        self,
        pixels: Tensor,
        extent: tuple[int, int],
        feature_map: FeatureMap,
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        image_list = import_torchvision().models.detection.image_list.ImageList
        return self.faster_rcnn.rpn(image_list(pixels, [extent] * len(pixels)), feature_map, targets)

    def _pool(self, pixels: Tensor, feature_map: FeatureMap, boxes: list[Tensor]) -> Tensor:
        return self.faster_rcnn.roi_heads.box_roi_pool(feature_map, boxes, [tuple(pixels.shape[2:])] * len(pixels))
