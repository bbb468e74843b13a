"""The exports and adapters that are served, by name."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dimvl.adapters.folder import read_adapter
from dimvl.errors import UserError
from dimvl.export import find_export
from dimvl.files import folder_or_hub_name
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import is_no_detector
from dimvl.serve.requests import REQUESTS
from dimvl.tasks import abilities_of


@dataclass(frozen=True)
class Served:
    """A model under the name that requests give."""

    name: str
    predictor: Predictor

    @cached_property
    def abilities(self) -> list[str]:
        """What requests may ask of it, by the verbs of `Predictor.predict`; `regions` if it has a detector."""
        known = {verb for form in REQUESTS.values() for verb in form.verbs}
        own = [verb for verb in abilities_of(self.predictor.trained.processor) if verb in known]
        return own if is_no_detector(self.predictor.detector_folder) else [*own, "regions"]


def open_models(exports: Sequence[str], adapters: Sequence[str], device: str) -> dict[str, Served]:
    """Open exports and adapters of them, and load each detector once.

    Args:
        exports: folders or names on the hub; `NAME=EXPORT` gives another name than that of the folder.
        adapters: likewise; each belongs to the first export that is its base.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: two have one name, one cannot be opened, or an adapter belongs to none of the exports.

    """
    bases: dict[str, Served] = {}
    for name, folder in _named(exports, "an export", ()):
        predictor = Predictor.from_pretrained(folder, device)
        for other in bases.values():
            predictor.share_detector(other.predictor)
        bases[name] = Served(name, predictor)
    served = dict(bases)
    for name, folder in _named(adapters, "an adapter", bases):
        served[name] = Served(name, _on_base(folder, bases))
    for one in served.values():
        if "regions" in one.abilities:
            _ = one.predictor.detector  # loaded now, not with the first request
    return served


def _named(texts: Sequence[str], what: str, taken: Container[str]) -> list[tuple[str, str]]:
    """Split `NAME=FOLDER`; without a name it is that of the folder."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or os.path.exists(text):
            name, folder = Path(os.path.abspath(text)).name, text
        if not name or name in found or name in taken:
            raise UserError(
                f"{text} cannot be served as {name!r}, a name that is empty or already taken; give NAME={folder}"
            )
        found[name] = str(folder_or_hub_name(folder, what) or folder)
    return list(found.items())


def _on_base(folder: str, bases: Mapping[str, Served]) -> Predictor:
    digest = read_adapter(find_export(folder)).base_sha256
    own = next((base for base in bases.values() if base.predictor.trained.weights_sha256 == digest), None)
    if own is None and len(bases) > 1:
        raise UserError(f"{folder} is not an adapter of an export that is served; serve its base too")
    return (own or next(iter(bases.values()))).predictor.with_adapter(folder)


def choose_model(models: Mapping[str, Served], name: str | None, verb: str) -> Served:
    """Return the model of a name, or the first that has an ability.

    Raises:
        UserError: no model has this name, or the ability.

    """
    every = ", ".join(models)
    if name is None:
        able = next((one for one in models.values() if verb in one.abilities), None)
        if able is None:
            raise UserError(f"none of the models ({every}) can {verb}; see /models for what they can do")
        return able
    if name not in models:
        raise UserError(f"there is no model {name!r}; give one of {every}")
    if verb not in models[name].abilities:
        own = " and ".join(models[name].abilities)
        raise UserError(f"the model {name!r} cannot {verb}, but it can {own}; give another model")
    return models[name]
