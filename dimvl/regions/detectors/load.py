"""Opens a detector by the name that the user gives: the shipped one, a folder, one of torchvision or of the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionDetector
from dimvl.regions.detectors.open_vocabulary import OpenVocabularyDetector
from dimvl.regions.detectors.scenes import Detector, load_scene_detector
from dimvl.regions.detectors.settings import REMEDY, read_settings
from dimvl.regions.detectors.torchvision_models import TorchvisionDetector
from dimvl.regions.detectors.transformers_models import OPEN_VOCABULARY, TransformersDetector, family_of, is_hub_name
from dimvl.regions.vocabulary import Vocabulary

SCENES = "scenes"
NO_DETECTOR = "none"
KINDS: dict[str | None, type[RegionDetector]] = {
    "scenes": Detector,
    "torchvision": TorchvisionDetector,
    "transformers": TransformersDetector,
    "open_vocabulary": OpenVocabularyDetector,  # type: ignore[type-abstract]  # its `load` makes a subclass
}
"""The class that reads a saved detector, by the kind in its `detector.json`."""


def load_detector(
    name: str | Path = SCENES,
    options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    classes: Path | None = None,
    vocabulary: Path | None = None,
) -> RegionDetector:
    """Open a detector.

    Args:
        name: `scenes` for the shipped one; a folder that `save` or transformers wrote; the name of a detector of
            torchvision; or one of the Hugging Face hub, `owner/name` or `owner/name@revision`.
        options: settings that replace the detector's own: those of `Selection`, and sizes in pixels.
        weights: for a name of torchvision only; see `TorchvisionDetector.create`.
        classes: file of class names, one per line, for a file of weights.
        vocabulary: file of names to look for, one per line, for an open-vocabulary detector.

    Raises:
        UserError: the detector does not exist or cannot be read, or an option does not fit.

    """
    folder, name = Path(name), str(name)
    own = name == SCENES or folder.is_dir() or is_hub_name(name)
    if own and (weights is not None or classes is not None):
        raise UserError(f"detector {name} has its own weights and classes; omit the given ones")
    detector = _open(name, folder, weights, classes, vocabulary)
    if vocabulary is not None and not isinstance(detector, OpenVocabularyDetector):
        raise UserError(f"detector {name} has its own classes; omit the vocabulary {vocabulary}")
    return detector.configure(options or {})


def _open(
    name: str, folder: Path, weights: str | None, classes: Path | None, vocabulary: Path | None
) -> RegionDetector:
    if name == SCENES:
        return load_scene_detector()
    if folder.is_dir():
        return _open_folder(folder, vocabulary)
    if is_hub_name(name):
        return _of_transformers(name, vocabulary)
    return TorchvisionDetector.create(name, weights, None if classes is None else Vocabulary.read(classes).names)


def missing_file(folder: Path) -> str | None:
    """Return the first file that a saved detector lacks, or None; a `UserError` if `detector.json` is not JSON."""
    if not (folder / SETTINGS).is_file():
        return SETTINGS
    kind = _kind(folder)
    return next((name for name in KINDS[kind].files if not (folder / name).is_file()), None) if kind in KINDS else None


def is_no_detector(folder: Path) -> bool:
    """Return whether a folder stands for the detector of an export without one."""
    return (folder / SETTINGS).is_file() and _kind(folder) == NO_DETECTOR


def _kind(folder: Path) -> str | None:
    kind = read_settings(folder).get(KIND)
    return kind if isinstance(kind, str) else None


def _of_transformers(place: str | Path, vocabulary: Path | None) -> RegionDetector:
    if family_of(place) in OPEN_VOCABULARY:
        return OpenVocabularyDetector.create(place, None if vocabulary is None else Vocabulary.read(vocabulary).names)
    return TransformersDetector.load(place)


def _open_folder(folder: Path, vocabulary: Path | None) -> RegionDetector:
    if not (folder / SETTINGS).exists() and (folder / "config.json").exists():
        return _of_transformers(folder, vocabulary)
    kind = _kind(folder)
    if kind == NO_DETECTOR:
        raise UserError(f"{folder.parent} was exported without a detector; give another, or export it with one")
    if kind not in KINDS:
        raise UserError(f"{folder / SETTINGS} does not describe a detector: its {KIND!r} is {kind!r}; {REMEDY}")
    if vocabulary is not None and kind == "open_vocabulary":
        raise UserError(f"{folder} was saved with its vocabulary; omit {vocabulary}, or open the model itself with it")
    return KINDS[kind].load(folder)
