"""One extractor of up to three frozen models: where regions are, what they look like, what they are called.

- where: a detector, a grid, or boxes from elsewhere;
- looks: the detector's own feature, or the mean of a backbone's feature map within the box, for all regions of an image
  in one pass;
- called: the detector's classes, and names from a vocabulary or from learned concepts. They are the classes of a region
  if it has no others, else its attributes.

Letters: R regions of an image, F feature width, K names kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from dimvl.errors import UserError
from dimvl.files import Strict, check_values, write_json
from dimvl.regions.backbones.base import Backbone
from dimvl.regions.backbones.load import open_folder
from dimvl.regions.backbones.pooling import pool, pool_cells
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionDetector, RegionExtractor
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.detectors.settings import REMEDY, read_settings
from dimvl.regions.extractors.grid import Grid
from dimvl.regions.naming.base import Namer
from dimvl.regions.naming.load import load_namer
from dimvl.regions.records import Detections, Extractor, combined_fingerprint

COMPOSED = "composed"
WHERE, LOOKS, CALLED = "where", "looks", "called"
"""Folders of a saved extractor."""


class _Settings(Strict):
    """`detector.json`: its name, and what is not in a folder of its own."""

    kind: Literal["composed"]
    name: str
    grid: int | None
    whole_image: bool
    looks: bool
    called: bool


class _Prepared(NamedTuple):
    where: Any
    looks: np.ndarray | None


class ComposedExtractor(RegionExtractor):
    """Where, looks and called, ready for use.

    Args:
        where: finds the boxes.
        looks: gives the features; None for those of the detector.
        called: gives names; None for none beside the detector's.

    Raises:
        UserError: a grid without a backbone, or names that belong to other features.

    """

    def __init__(self, where: RegionDetector | Grid, looks: Backbone | None, called: Namer | None) -> None:
        if isinstance(where, Grid) and looks is None:
            raise UserError(
                "a grid and given boxes have no features of their own; give a backbone, such as efficientnet_lite2, as "
                "--features"
            )
        self.where = where
        self.looks = looks
        self.called = called
        self.recipe: dict[str, str] = {}
        place = where.name if isinstance(where, RegionDetector) else "grid" if where.cells else "boxes"
        self.name = place if looks is None else f"{place}, features of {looks.name}"
        if called is not None:
            called.check_features(self._unnamed)

    @property
    def describes(self) -> bool:  # type: ignore[override]
        """Whether it can describe boxes from elsewhere."""
        return self.looks is not None or (isinstance(self.where, RegionDetector) and self.where.describes)

    @property
    def _unnamed(self) -> Extractor:
        """The extractor without the names of `called`."""
        parts: dict[str, str] = {}
        looks = self.looks
        if isinstance(self.where, RegionDetector):
            own = self.where.extractor
            parts["where"] = own.fingerprint
            width, classes, attributes, parameters = own.feature_width, own.classes, own.attributes, own.parameters
        else:
            width, classes, attributes, parameters = 0, (), (), self.where.parameters
        if looks is not None:
            parts["looks"] = looks.fingerprint
            width, parameters = looks.width, {**parameters, "features_side": looks.side}
        return Extractor(
            name=self.name,
            fingerprint=combined_fingerprint(parts),
            parameters=parameters,
            feature_width=width,
            classes=classes,
            attributes=attributes,
            parts=parts,
            recipe=self.recipe,
        )

    @property
    def extractor(self) -> Extractor:
        """See `RegionExtractor.extractor`."""
        own = self._unnamed
        return own if self.called is None else own.named(self.called.names, self.called.fingerprint)

    def extractor_of_given(self, classes: tuple[str, ...]) -> Extractor:
        """See `RegionExtractor.extractor_of_given`; names from elsewhere are attributes beside the given classes."""
        given = super().extractor_of_given(classes)
        return given if self.called is None else replace(given, attributes=self.called.names)

    def with_given_classes(self, found: Detections, class_ids: np.ndarray, class_scores: np.ndarray) -> Detections:
        """See `RegionExtractor.with_given_classes`."""
        if self.called is not None and not self._unnamed.classes:
            found = replace(found, attribute_ids=found.class_ids, attribute_scores=found.class_scores)
        return super().with_given_classes(found, class_ids, class_scores)

    def configure(self, options: Mapping[str, Any]) -> Self:
        """See `RegionExtractor.configure`."""
        known = self._unnamed.parameters
        if unknown := sorted(options.keys() - known.keys()):
            raise UserError(f"{self.name} has no setting {unknown[0]}; it has {', '.join(sorted(known))}")
        where = {name: value for name, value in options.items() if name != "features_side"}
        if self.looks is not None and options.get("features_side", self.looks.side) != self.looks.side:
            raise UserError(
                f"{self.looks.name} was opened for {self.looks.side} pixels; omit features_side, or name the "
                "backbone itself"
            )
        if isinstance(self.where, Grid):
            self.where = self.where.configured(where)
        else:
            self.where.configure(where)
        return self

    def to(self, device: torch.device | str) -> Self:
        """See `RegionExtractor.to`."""
        for model in self._models:
            model.to(device)
        return self

    def for_prediction(self) -> Self:
        """See `RegionExtractor.for_prediction`."""
        for model in self._models:
            model.for_prediction()
        return self

    @property
    def _models(self) -> list[RegionDetector | Backbone]:
        """What computes on a device; names are given on the CPU."""
        return [part for part in (self.where, self.looks) if part is not None and not isinstance(part, Grid)]

    @classmethod
    def load(cls, folder: Path) -> "ComposedExtractor":
        """See `RegionExtractor.load`."""
        settings = check_values(read_settings(folder), _Settings, folder / SETTINGS, REMEDY)
        if settings.grid is None:
            where: Any = load_detector(folder / WHERE)
        else:
            where = Grid(cells=settings.grid, whole_image=settings.whole_image)
        looks = open_folder(folder / LOOKS) if settings.looks else None
        called = load_namer(folder / CALLED) if settings.called else None
        return cls(where, looks, called)

    def save(self, folder: Path) -> None:
        """See `RegionExtractor.save`; each model has a folder of its own."""
        grid = self.where if isinstance(self.where, Grid) else None
        for name, part in ((WHERE, self.where), (LOOKS, self.looks), (CALLED, self.called)):
            if part is not None and not isinstance(part, Grid):
                (folder / name).mkdir()
                part.save(folder / name)
        settings = {
            KIND: COMPOSED,
            "name": self.name,
            "grid": None if grid is None else grid.cells,
            "whole_image": grid is not None and grid.whole_image,
            "looks": self.looks is not None,
            "called": self.called is not None,
        }
        write_json(folder / SETTINGS, settings)

    def prepare(self, image: Image.Image) -> _Prepared:
        """See `RegionExtractor.prepare`."""
        where = None if isinstance(self.where, Grid) else self.where.prepare(image)
        return _Prepared(where, None if self.looks is None else self.looks.prepare(image))

    @torch.inference_mode()
    def detect_prepared(
        self, arrays: Sequence[_Prepared], boxes: Sequence[np.ndarray] | None = None
    ) -> list[Detections]:
        """See `RegionExtractor.detect_prepared`."""
        if boxes is not None:
            self.check_describes()
        grid = self._grid(given=boxes is not None)
        given = [len(rows) for rows in boxes] if boxes is not None else [0] * len(arrays)
        if grid is None:
            found = self._detector.detect_prepared([array.where for array in arrays], boxes)
        else:
            found = [_unknown(grid.boxes(None if boxes is None else boxes[index])) for index in range(len(arrays))]
        if self.looks is not None:
            features = self._features(self.looks, arrays, found, grid, given)
            found = [replace(one, features=own) for one, own in zip(found, features, strict=True)]
        if self.called is None:
            return found
        kind = "attribute" if self._unnamed.classes else "class"
        return [replace(one, **self.called.arrays(one.features, kind)) for one in found]

    @property
    def _detector(self) -> RegionDetector:
        assert isinstance(self.where, RegionDetector)
        return self.where

    def _grid(self, given: bool) -> Grid | None:
        """Return what places the regions instead of a detector: beside given boxes, one that adds the whole image."""
        if isinstance(self.where, Grid):
            return self.where
        return Grid(cells=0, whole_image=self.where.selection.whole_image) if given and self.looks is not None else None

    def _features(
        self,
        looks: Backbone,
        arrays: Sequence[_Prepared],
        found: Sequence[Detections],
        grid: Grid | None,
        given: Sequence[int],
    ) -> list[np.ndarray]:
        """Return (R, F) float16 for the regions of each image; those of cells do not depend on given boxes."""
        maps = looks.feature_map(np.stack([array.looks for array in arrays if array.looks is not None]))
        boxes = [torch.from_numpy(one.boxes).to(maps.device) for one in found]
        if grid is None:
            features = pool(maps, boxes)
        else:
            cells = pool_cells(maps, grid.cells) if grid.cells else maps.new_zeros(len(maps), 0, maps.shape[1])
            placed = torch.cat([cells, maps.mean((2, 3))[:, None]], dim=1)
            pooled = pool(maps, [rows[:number] for rows, number in zip(boxes, given, strict=True)])
            features = [torch.cat(parts)[: len(rows)] for *parts, rows in zip(pooled, placed, boxes, strict=True)]
        with np.errstate(over="ignore"):  # values beyond float16 become infinite, which the store's writer refuses
            return [rows.float().cpu().numpy().astype(np.float16) for rows in features]


def _unknown(boxes: np.ndarray) -> Detections:
    """Return regions without features and names."""
    ids, scores = np.zeros((len(boxes), 0), np.int16), np.zeros((len(boxes), 0), np.float16)
    return Detections(
        boxes=boxes, features=scores, class_ids=ids, class_scores=scores, attribute_ids=ids, attribute_scores=scores
    )
