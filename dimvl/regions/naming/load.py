"""Opens a saved namer by the kind in its `called.json`."""

from pathlib import Path

from dimvl.errors import UserError
from dimvl.fields import mapping
from dimvl.files import read_json
from dimvl.regions.naming.base import SETTINGS, Namer
from dimvl.regions.naming.concepts import ConceptNamer
from dimvl.regions.naming.text_tower import TextNamer

KINDS: dict[str, type[Namer]] = {"concepts": ConceptNamer, "text": TextNamer}
"""The class that reads a folder, by the kind in its `called.json`."""
LARGEST = 2**26
"""Bytes of `called.json`."""


def load_namer(folder: Path) -> Namer:
    """Load what `Namer.save` wrote.

    Raises:
        UserError: the folder holds no namer, or as `Namer.load`.

    """
    file = folder / SETTINGS
    if not file.is_file():
        raise UserError(f"{folder} has no {SETTINGS}; give a folder that `dimvl concepts` wrote")
    kind = mapping(read_json(file, LARGEST), (), str(file), "copy the folder again").get("kind")
    if kind not in KINDS:
        raise UserError(f"{file} does not describe names for regions: its kind is {kind!r}; copy the folder again")
    return KINDS[kind].load(folder)
