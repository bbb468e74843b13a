"""Opens a detector by what the user calls it: the shipped one, a folder, a name of torchvision, a name on the hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionDetector
from dimvl.regions.detectors.scenes import SCENES_FOLDER, Detector
from dimvl.regions.detectors.torchvision_models import TorchvisionDetector
from dimvl.regions.detectors.transformers_models import TransformersDetector

SCENES = "scenes"
NO_DETECTOR = "none"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FILES: dict[Any, tuple[str, ...]] = {
    "scenes": ("detector.safetensors",),
    "torchvision": ("detector.safetensors",),
    "transformers": ("config.json", "model.safetensors", "preprocessor_config.json"),
}
"""What a saved detector has beside `detector.json`, by kind."""


def load_detector(
    name: str | Path = SCENES,
    options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    classes: Path | None = None,
) -> RegionDetector:
    """Open a detector.

    Args:
        name: `scenes` for the shipped one; a folder that a detector was saved to, or that transformers saved; the name
            of a detector of torchvision; or one of the Hugging Face hub, `owner/name` or `owner/name@revision`.
        options: settings of the detector that win over its own: those of `Selection`, and sizes in pixels.
        weights: for a name of torchvision only; see `TorchvisionDetector.create`.
        classes: file of class names, one a line, for a file of weights.

    Raises:
        UserError: there is no such detector, it cannot be read, or an option does not fit.

    """
    folder, name = Path(name), str(name)
    own = name == SCENES or folder.is_dir()
    if (weights is not None or classes is not None) and (own or HUB_NAME.fullmatch(name)):
        raise UserError(f"detector {name} has its own weights and classes; leave out those given")
    return _open(name, folder, weights, classes).configure(options or {})


def _open(name: str, folder: Path, weights: str | None, classes: Path | None) -> RegionDetector:
    if name == SCENES:
        return Detector.load(SCENES_FOLDER)
    if folder.is_dir():
        return _open_folder(folder)
    # "detectors/mine" looks like a name on the hub; where there is a folder "detectors", a folder was meant.
    if len(folder.parts) > 1:
        if not HUB_NAME.fullmatch(name) or folder.parent.is_dir():
            raise UserError(f"detector {name} does not exist; check the path")
        return TransformersDetector.load(name, {})
    return TorchvisionDetector.create(name, weights, None if classes is None else _read_names(classes))


def missing_file(folder: Path) -> str | None:
    """Return the name of a file that a saved detector lacks, if it does.

    Raises:
        UserError: `detector.json` is not JSON.

    """
    if not (folder / SETTINGS).is_file():
        return SETTINGS
    settings = read_json(folder / SETTINGS)
    names = FILES.get(settings.get(KIND), ()) if isinstance(settings, dict) else ()
    return next((name for name in names if not (folder / name).is_file()), None)


def _open_folder(folder: Path) -> RegionDetector:
    if not (folder / SETTINGS).exists() and (folder / "config.json").exists():
        return TransformersDetector.load(folder, {})
    settings = read_json(folder / SETTINGS)
    kind = settings.get(KIND) if isinstance(settings, dict) else None
    if kind == "torchvision":
        return TorchvisionDetector.load(folder, settings)
    if kind == "transformers":
        return TransformersDetector.load(folder, settings)
    if kind == "scenes":
        return Detector.load(folder)
    if kind == NO_DETECTOR:
        raise UserError(f"{folder.parent} was exported without a detector; give it regions, or export it with one")
    raise UserError(
        f"{folder / SETTINGS} does not describe a detector (its {KIND!r} is {kind!r}); copy the detector's folder again"
    )


def _read_names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class names {file} cannot be read ({error}); give a text file, one name a line") from None
    return [line.strip() for line in lines if line.strip()]
