"""Opens an extractor by the names that the user gives, each of its parts on its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionExtractor
from dimvl.regions.detectors.load import SCENES, load_detector
from dimvl.regions.detectors.settings import read_settings
from dimvl.regions.extractors.composed import COMPOSED, ComposedExtractor
from dimvl.regions.extractors.grid import Grid
from dimvl.regions.naming.load import load_namer
from dimvl.regions.naming.text_tower import TextNamer
from dimvl.regions.vocabulary import Vocabulary

GRIDS = {"grid": Grid(), "boxes": Grid(cells=0, whole_image=False)}
"""Places without a detector: the cells of a grid, and boxes from elsewhere alone."""


def load_extractor(
    where: str | Path = SCENES,
    options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    classes: str | Path | None = None,
    features: str | Path | None = None,
    features_weights: str | None = None,
    vocabulary: str | Path | None = None,
    names_by: str | Path | None = None,
    concepts: str | Path | None = None,
) -> RegionExtractor:
    """Open what turns images into regions.

    Args:
        where: `grid` for the cells of a grid and the whole image; `boxes` for boxes from elsewhere alone; the folder of
            a saved extractor; or a detector, see `load_detector`.
        options: settings that replace its own: those of `Selection` and `Grid`, and sizes in pixels.
        weights: of a detector; see `load_detector`.
        classes: as `weights`.
        features: backbone whose features replace those of the detector; see `load_backbone`.
        features_weights: as in `load_backbone`.
        vocabulary: file of names, one per line: an open-vocabulary detector looks for them, or `names_by` chooses.
        names_by: a CLIP or SigLIP whose text tower gives names of the vocabulary; see `TextNamer.create`.
        concepts: folder of learned concepts, which give names.

    Raises:
        UserError: a part does not exist or cannot be read, or does not fit another; or an option does not fit.

    """
    named = {"where": where, "features": features, "vocabulary": vocabulary, "names_by": names_by, "concepts": concepts}
    named |= {"weights": weights, "classes": classes, "features_weights": features_weights}
    if features_weights is not None and features is None:
        raise UserError(f"weights {features_weights} belong to no backbone; give its name as --features")
    if names_by is not None and (vocabulary is None or concepts is not None):
        remedy = "omit --concepts or --names-by" if concepts else "give a file of names as --vocabulary"
        raise UserError(f"{names_by} names regions by a vocabulary alone; {remedy}")
    of_detector: dict[str, Any] = {} if weights is None else {"weights": weights}
    if classes is not None:
        of_detector["classes"] = Path(classes)
    if vocabulary is not None and names_by is None:
        of_detector["vocabulary"] = Path(vocabulary)
    grid, options = GRIDS.get(str(where)), dict(options or {})
    found: RegionExtractor
    if grid is not None and "vocabulary" in of_detector:
        raise UserError(f"{where} takes no vocabulary; omit --vocabulary, or give a model as --names-by")
    if grid is not None and of_detector:
        useless = next(iter(of_detector.values()))
        raise UserError(f"{where} has no weights and classes; omit {useless}, or name a detector")
    if grid is not None or features is not None or names_by is not None or concepts is not None:
        place = grid or load_detector(where, **of_detector)
        looks, namer = None, None if concepts is None else load_namer(Path(concepts))
        if features is not None:
            looks = load_backbone(str(features), features_weights, options.pop("features_side", None))
        if names_by is not None and vocabulary is not None:
            namer = TextNamer.create(names_by, Vocabulary.read(Path(vocabulary)).names)
        found = ComposedExtractor(place, looks, namer)
    elif is_composed(where) and not of_detector:
        found = ComposedExtractor.load(Path(where))
    else:
        found = load_detector(where, **of_detector)
    found.recipe = {name: _absolute(value) for name, value in named.items() if value is not None}
    return found.configure(options)


def is_composed(where: str | Path) -> bool:
    """Return whether a folder holds a saved extractor of several parts."""
    return (Path(where) / SETTINGS).is_file() and read_settings(Path(where)).get(KIND) == COMPOSED


def _absolute(name: str | Path) -> str:
    """Return a path as one that can be opened from any folder; other names stay as they are."""
    known = str(name) in (SCENES, *GRIDS)
    return str(Path(name).absolute()) if Path(name).exists() and not known else str(name)
