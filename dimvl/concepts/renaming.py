"""A region store to a new one whose regions have the words of trained concepts: `dimvl name`."""

from dataclasses import replace
from pathlib import Path

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.regions.naming.base import Namer
from dimvl.regions.naming.folds import Folds
from dimvl.regions.records import HELD_OUT_NAMES, Extractor
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter


def named_extractor(store: RegionStore, namer: Namer, place: Path, held_out: bool = False) -> Extractor:
    """Return the extractor of a store's regions with the names of a namer.

    Args:
        store: the regions.
        namer: gives the names.
        place: its folder, for the recipe of the extractor.
        held_out: whether images that the namer was trained on are named by other models; recorded as a parameter.

    Raises:
        UserError: the names were not made for its features, or the regions have names of another model already.

    """
    if "called" in store.extractor.parts:
        raise UserError(
            f"the regions of {store.path} were named by another model already; give the store that it was made from"
        )
    namer.check_features(store.extractor)
    extractor = store.extractor.named(namer.names, namer.fingerprint)
    if extractor.recipe:
        extractor = replace(extractor, recipe={**extractor.recipe, "concepts": str(place.absolute())})
    return replace(extractor, parameters={**extractor.parameters, HELD_OUT_NAMES: True}) if held_out else extractor


def name_store(
    store: RegionStore,
    namer: Namer,
    writer: RegionStoreWriter,
    folds: Folds | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write every image of a store with new names and the same regions.

    Args:
        store: the regions.
        namer: gives the names.
        writer: of the new store, with the extractor of `named_extractor`; images that it has are kept.
        folds: models for the images that the namer was trained on; None names all images by the namer.
        progress: called with the images done and in total.

    Returns:
        The images written, and those that were there.

    """
    kind = "attribute" if store.extractor.classes else "class"
    already = 0
    for position in range(len(store)):
        image_id = store.image_id(position)
        if image_id in writer:
            already += 1
        else:
            own = None if folds is None else folds.namer_of(image_id)
            regions = store.read(position)
            writer.add(replace(regions, **(own or namer).arrays(regions.features, kind)))
        if progress is not None:
            progress(position + 1, len(store))
    return len(store) - already, already
