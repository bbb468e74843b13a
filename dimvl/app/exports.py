"""The exports, index, store and image files that the page uses, and an image opened with its regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from dimvl.app.results import Mark, marks_of
from dimvl.data.prefixes import best_regions
from dimvl.drawing import data_uri, draw_regions, region_name
from dimvl.errors import UserError
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import is_no_detector
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.images import image_from, load_image
from dimvl.regions.listing import images_of_folder
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.search.index import ImageIndex
from dimvl.search.queries import ImageQuery, find_by_texts, find_similar
from dimvl.showing import short
from dimvl.tasks import abilities_of
from dimvl.trained_model import model_fingerprint

VERBS = ("caption", "answer", "match", "ground")
"""What the page does with an image, beside search."""
EXAMPLES = "examples"
"""Folder of an export whose images the page offers."""
NUM_EXAMPLES = 8
NUM_HITS = 8
SHOWN_SIDE, THUMBNAIL_SIDE = 1024, 224  # pixels
SKETCHED = 5
"""Regions drawn of an image without a file."""
PAPER = "#e9ebf0"


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        name: what the page calls it.
        uri: the image to show, as a `data:` URI.
        size: width and height of the upright image in pixels.
        regions: its regions for each export that has any, by the name of the export.
        marks: the regions that are shown.
        position: its place in the index, if it comes from there.

    """

    name: str
    uri: str
    size: tuple[int, int]
    regions: Mapping[str, Regions]
    marks: Sequence[Mark]
    position: int | None = None


@dataclass(frozen=True)
class Shown:
    """An image to choose: its id, and a small copy as a `data:` URI."""

    image_id: str
    uri: str
    score: float = 0.0


class Exports:
    """Opened exports with what belongs to them.

    Args:
        predictors: the exports by the names that the page uses; at least one.
        index: an index of images made by one of them.
        store: regions of images, which need not be detected then.
        files: image files by id.

    Attributes:
        examples: ids of a few images to begin with: those of the exports' own `EXAMPLES`, then some of `files`.
        searcher: the name of the export that made the index.

    Raises:
        UserError: no export made the index, the store fits none of them, or an export has nothing to do on the page.

    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        index: ImageIndex | None = None,
        store: RegionStore | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.predictors, self.index, self.store = predictors, index, store
        self.searcher = None if index is None else self._maker(index)
        for name, predictor in predictors.items():
            if name != self.searcher and not any(name in self.able(verb) for verb in VERBS):
                raise UserError(
                    f"{predictor.trained.weights.parent} cannot {' or '.join(VERBS)}; omit it, or give the index that "
                    "it made as --index"
                )
        if store is not None and all(self._conflict(predictor) for predictor in predictors.values()):
            first = next(iter(predictors.values()))
            first.trained.processor.check_extractor(store.extractor, str(store.path))
        folders = [predictor.trained.weights.parent / EXAMPLES for predictor in predictors.values()]
        own = {image_id: file for folder in folders if folder.is_dir() for image_id, file in images_of_folder(folder)}
        self.files = {**(files or {}), **own}
        stored = [] if store is None else map(store.image_id, range(min(len(store), NUM_EXAMPLES)))
        if any(not is_no_detector(predictor.detector_folder) for predictor in predictors.values()):
            self._picture(Image.new("RGB", (64, 64)), None, "")  # loads the detectors, or says why not
        self.examples = [*own, *(files or stored)][:NUM_EXAMPLES]

    def able(self, verb: str) -> list[str]:
        """Return the names of the exports with an ability."""
        return [
            name for name, predictor in self.predictors.items() if verb in abilities_of(predictor.trained.processor)
        ]

    def open(self, content: bytes, name: str) -> Picture:
        """Open the bytes of an image file.

        Raises:
            UserError: it is damaged, too large or not an image, or no export has a detector.

        """
        return self._picture(image_from(content, name), None, name)

    def open_known(self, image_id: str) -> Picture:
        """Open an image of the store, the index or the files, by its id; a `UserError` if it is gone."""
        image, stored = self._known(image_id)
        position = None if self.index is None else self.index.find(image_id)
        return self._picture(image, stored, image_id, position)

    def thumbnail(self, image_id: str, score: float = 0.0) -> Shown:
        """Return a small copy of an image that `open_known` opens; without an image to show, an empty URI."""
        try:
            image, stored = self._known(image_id)
        except UserError:
            return Shown(image_id, "", score)
        return Shown(image_id, data_uri(image or self._sketch(stored), THUMBNAIL_SIDE), score)

    def regions(self, picture: Picture, name: str) -> Regions:
        """Return the regions of an image for an export; a `UserError` if it has none."""
        if name not in picture.regions:
            raise UserError(
                f"{name} has no detector, so it takes only images whose regions are stored; start the page with "
                "--store and choose one of those"
            )
        return picture.regions[name]

    def search(self, text: str) -> list[Shown]:
        """Find the images of the index that fit a text; a `UserError` if it has no known word."""
        index, predictor = self._search_with()
        predictor.trained.tokenise_known([text])
        [hits] = find_by_texts(predictor.trained, index, [[text]], min(NUM_HITS, len(index)))
        return [self.thumbnail(index.image_id(hit.place), hit.score) for hit in hits]

    def similar(self, picture: Picture) -> list[Shown]:
        """Find the images of the index that are like another one."""
        index, predictor = self._search_with()
        assert self.searcher is not None
        if picture.position is None:
            embedded = predictor.embed_image(self.regions(picture, self.searcher))
            query = ImageQuery(torch.from_numpy(embedded)[None])
        else:
            query = ImageQuery(index.embedding(picture.position)[None], picture.position)
        count = min(NUM_HITS, len(index) - (query.position is not None))
        hits = find_similar(index, query, count) if count else []
        return [self.thumbnail(index.image_id(hit.place), hit.score) for hit in hits]

    def _search_with(self) -> tuple[ImageIndex, Predictor]:
        assert self.index is not None and self.searcher is not None
        return self.index, self.predictors[self.searcher]

    def _maker(self, index: ImageIndex) -> str:
        """Return the name of the export that made an index."""
        for name, predictor in self.predictors.items():
            if predictor.trained.processor.aligns and model_fingerprint(predictor.trained) == index.manifest.model:
                return name
        raise UserError(f"{index.path} was made by {index.manifest.model_name}; give that export too, or omit --index")

    def _conflict(self, predictor: Predictor) -> bool:
        """Whether an export cannot use the regions of the store."""
        own = predictor.trained.processor.extractor
        return self.store is None or own.conflict(self.store.extractor) is not None

    def _known(self, image_id: str) -> tuple[Image.Image | None, Regions | None]:
        """Return the image and the stored regions of an id; at least one of them."""
        image = load_image(self.files[image_id]) if image_id in self.files else None
        stored = None
        if self.store is not None and image_id in self.store:
            stored = self.store.read(self.store.position(image_id))
        if image is None and stored is None:
            raise UserError(f"there is no image {short(image_id)}; choose one that the page shows")
        return image, stored

    def _picture(
        self, image: Image.Image | None, stored: Regions | None, name: str, position: int | None = None
    ) -> Picture:
        """Find the regions of an image: stored ones where they fit, and once for exports with the same extractor."""
        found: dict[str, Regions] = {}
        for own, predictor in self.predictors.items():
            extractor = self._extractor(own)
            same = [found[other] for other in found if self._extractor(other) == extractor]
            if stored is not None and not self._conflict(predictor):
                regions = stored
            elif same:
                regions = same[0]
            elif image is not None and not is_no_detector(predictor.detector_folder):
                regions = predictor.regions(image)
            else:
                continue
            found[own] = best_regions(regions.checked(extractor), predictor.trained.processor.max_regions)
        picture = Picture(name, "", (1, 1), found, [], position)
        first = next(iter(found), next(iter(self.predictors)))
        regions = self.regions(picture, first)
        shown = image or Image.new("RGB", (regions.width, regions.height), PAPER)
        marks = marks_of(self.predictors[first], regions)
        return replace(picture, uri=data_uri(shown, SHOWN_SIDE), size=shown.size, marks=marks)

    def _extractor(self, name: str) -> Extractor:
        return self.predictors[name].trained.processor.extractor

    def _sketch(self, regions: Regions | None) -> Image.Image:
        """Draw the regions of an image that is not there."""
        assert self.store is not None and regions is not None
        best = best_regions(regions, SKETCHED)
        paper = Image.new("RGB", (regions.width, regions.height), PAPER)
        names = [region_name(self.store.extractor, best, place) for place in range(len(best))]
        return draw_regions(paper, fractions_to_pixels(best.boxes, *paper.size).tolist(), names, THUMBNAIL_SIDE)
