"""Opens a backbone by the name that the user gives: a package's, a folder, one of torchvision or of the hub."""

from pathlib import Path

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.backbones.base import REMEDY, SETTINGS, Backbone
from dimvl.regions.backbones.efficientnet_lite import SCALES, EfficientNetLite
from dimvl.regions.backbones.torchvision_models import TorchvisionBackbone

KINDS: dict[str, type[Backbone]] = {kind.kind: kind for kind in (EfficientNetLite, TorchvisionBackbone)}
"""The class that reads a saved backbone, by the kind in its `looks.json`."""


def load_backbone(name: str, weights: str | None = None, side: int | None = None) -> Backbone:
    """Open a backbone.

    Args:
        name: `efficientnet_lite0` to `efficientnet_lite4`; a folder that `save` or transformers wrote; the name of a
            classification network of torchvision; or one of the Hugging Face hub, `owner/name` or
            `owner/name@revision`.
        weights: a file of weights, or a weight name of torchvision; by default the published ones.
        side: pixels that both sides of an image are scaled to; by default those that it was trained at.

    Raises:
        UserError: the backbone does not exist, cannot be read, or has no map for images of that side.

    """
    folder = Path(name)
    if folder.is_dir() and (folder / SETTINGS).exists():
        return open_folder(folder)
    if name in SCALES:
        return EfficientNetLite.create(name, weights, side)
    return TorchvisionBackbone.create(name, weights, side)


def open_folder(folder: Path) -> Backbone:
    """Open what `Backbone.save` wrote; raises as `load_backbone`."""
    settings = read_json(folder / SETTINGS)
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind not in KINDS:
        raise UserError(f"{folder / SETTINGS} does not describe a backbone: its 'kind' is {kind!r}; {REMEDY}")
    return KINDS[kind].load(folder)
