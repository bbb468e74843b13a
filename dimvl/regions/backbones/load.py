"""Opens a backbone by the name that the user gives: a package's, a folder, one of torchvision or of the hub."""

from pathlib import Path

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.backbones.base import REMEDY, SETTINGS, Backbone
from dimvl.regions.backbones.efficientnet_lite import SCALES, EfficientNetLite
from dimvl.regions.backbones.torchvision_models import TorchvisionBackbone
from dimvl.regions.backbones.transformers_models import TransformersBackbone
from dimvl.regions.detectors.transformers_models import is_hub_name

KINDS: dict[str, type[Backbone]] = {
    kind.kind: kind for kind in (EfficientNetLite, TorchvisionBackbone, TransformersBackbone)
}
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
    on_hub = not folder.is_dir() and is_hub_name(name, "backbone")
    if weights is not None and (on_hub or folder.is_dir()):
        raise UserError(f"backbone {name} has its own weights; omit {weights}")
    if folder.is_dir():
        if (folder / SETTINGS).exists():
            return open_folder(folder, side)
        if (folder / "config.json").exists():
            return TransformersBackbone.create(folder, side)
        raise UserError(
            f"folder {name} holds no backbone: neither {SETTINGS} nor config.json; use a folder that dimvl or "
            "transformers wrote"
        )
    if on_hub:
        return TransformersBackbone.create(name, side)
    kind = EfficientNetLite if name in SCALES else TorchvisionBackbone
    return kind.create(name, weights, side)


def open_folder(folder: Path, side: int | None = None) -> Backbone:
    """Open what `Backbone.save` wrote; raises as `load_backbone`."""
    settings = read_json(folder / SETTINGS)
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind not in KINDS:
        raise UserError(f"{folder / SETTINGS} does not describe a backbone: its 'kind' is {kind!r}; {REMEDY}")
    return KINDS[kind].load(folder, side)
