"""Export of a run: one folder with everything that predictions need, in the conventions of the Hugging Face hub.

config.json           the model's arguments
model.safetensors     the weights
processor.json        extractor, limits, answer vocabulary
tokenizer.json, tokenizer_config.json
trained_on.npy        hashes of the images that it was trained on
training.json         seed, data and code revision of the run, and what it started from
detector/             what made the regions that the model was trained with: detector, backbone, concepts
README.md             model card: data, configuration, code revision, measured scores; people may edit it
checksums.json        of all these files; an export owns the files that it names, and no others in its folder

That of an adapter has the adapter's weights alone and no detector, see `dimvl/adapters/folder.py`.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.adapters.adding import merge_adapter
from dimvl.adapters.folder import AdapterFile, read_adapter, write_adapter, write_weights
from dimvl.checkpoints import ADAPTER, CARD, MODEL, ORIGIN, RUN, WEIGHTS, Origin, origin_of, run_arguments
from dimvl.data.processor import FILE as PROCESSOR
from dimvl.data.tokenizer import CONFIG as TOKENIZER_CONFIG
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.trained_on import FILE as TRAINED_ON
from dimvl.data.trained_on import copy_trained_on
from dimvl.errors import UserError
from dimvl.files import (
    CHECKSUMS,
    RESTORE,
    atomic_folder,
    existing_folder,
    folder_checksums,
    folder_or_hub_name,
    locked,
    read_json,
    seal_folder,
    sha256,
    write_json,
    write_sealed,
    writing,
)
from dimvl.files.weights import save_weights
from dimvl.hub import download
from dimvl.model.convert import saved_tensors
from dimvl.model_card import model_card
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionExtractor
from dimvl.regions.detectors.load import KINDS, NO_DETECTOR, missing_file
from dimvl.regions.extractors.load import load_extractor
from dimvl.regions.records import Extractor
from dimvl.trained_model import TrainedModel, load_model

logger = logging.getLogger(__name__)
DETECTOR = "detector"
FILES = (MODEL, WEIGHTS, PROCESSOR, TOKENIZER, TRAINED_ON, f"{DETECTOR}/{SETTINGS}")
NEW = ".new-export"
"""Folder inside an existing one, where the new export is written before its files replace the old ones."""


def export(
    run: Path,
    out: Path,
    where: str | Path | None = None,
    scores: Mapping[str, Any] | None = None,
    merge: bool = False,
    base: str | None = None,
    **parts: Any,
) -> Path:
    """Write a run's best checkpoint (without validation the newest) as an export; of an adapter, the adapter alone.

    A folder that is new appears complete. In an existing one the files of an older export are replaced and all others
    stay; cut off in between, it cannot be opened, and exporting again completes it.

    Args:
        run: folder of the run.
        out: folder to write, or a link to it.
        where: what made the run's regions, as in `load_extractor`; by default what their store names. It gets the
            settings that the regions were made with. With `none`, the export takes regions but no images.
        scores: measured scores for the model card: names to numbers, or to such mappings.
        merge: put an adapter into its base, and write that as a whole export.
        base: what an adapter calls its base, such as its name on the Hugging Face hub; by default that of its folder.
        parts: other arguments of `load_extractor`, where they differ from those that the store names.

    Returns:
        `out`.

    Raises:
        UserError: `run` is not a run, `out` holds something else, another extractor made its regions, or an adapter
            cannot be merged.

    """
    arguments, origin = run_arguments(run), origin_of(run)
    trained = load_model(run)
    folder = Path(os.path.realpath(out)) if out.is_symlink() else out
    owned = _owned(folder)
    named = {name: value for name, value in {"where": where, **parts}.items() if value is not None}
    adapter = _adapter(run, trained, merge, base, named)
    found = None if where == NO_DETECTOR or adapter else _same_extractor(trained.processor.extractor, named)
    name = None if adapter is None else adapter.base
    card = model_card(trained, arguments, origin, scores or {}, found is not None, name)

    def write(folder: Path) -> None:
        if adapter is None:
            _write_whole(folder, trained, found)
        else:
            write_adapter(folder, write_weights(folder, trained.model, adapter))
        _write(folder, read_json(run / MODEL), trained, origin, card)

    if not folder.exists():
        with atomic_folder(folder) as temporary:
            write(temporary)
        return out
    with locked(folder, f"another process writes an export to {folder}; wait for it"):
        try:
            with atomic_folder(folder / NEW) as temporary:
                write(temporary)
            _replace(folder, owned)
        finally:
            shutil.rmtree(folder / NEW, ignore_errors=True)
    return out


def _adapter(
    run: Path, trained: TrainedModel, merge: bool, base: str | None, named: Mapping[str, Any]
) -> AdapterFile | None:
    """Return the adapter to export as it is; None if the run has none, or after it is merged into the model."""
    if not (run / ADAPTER).exists():
        if merge or base:
            raise UserError(f"{run} is not the run of an adapter; omit {'--merge' if merge else '--base'}")
        return None
    adapter = read_adapter(run)
    if merge:
        if base:
            raise UserError("--base is what an adapter calls its base, and --merge leaves none; omit one of them")
        merge_adapter(trained.model, adapter.adapter, str(run))
        return None
    if named:
        raise UserError(
            f"{run} is an adapter, whose export has no detector; omit --{next(iter(named)).replace('_', '-')}, or add "
            "--merge"
        )
    return adapter if base is None else adapter.model_copy(update={"base": base})


def _write_whole(folder: Path, trained: TrainedModel, detector: RegionExtractor | None) -> None:
    """Write weights and detector into an empty folder."""
    save_weights(folder / WEIGHTS, saved_tensors(trained.model))
    if detector is None:
        write_json(folder / DETECTOR / SETTINGS, {KIND: NO_DETECTOR})
    else:
        (folder / DETECTOR).mkdir()
        detector.save(folder / DETECTOR)


def _write(folder: Path, arguments: Mapping[str, Any], trained: TrainedModel, origin: Origin, card: str) -> None:
    """Write the files that any export has."""
    write_json(folder / MODEL, arguments)
    trained.processor.without_recipe().save(folder)
    copy_trained_on(folder, trained.trained_on)
    write_sealed(folder / ORIGIN, origin.model_dump(mode="json", exclude_unset=True))
    (folder / CARD).write_text(card, encoding="utf-8")
    files = (file for file in folder.rglob("*") if file.is_file())
    seal_folder(folder, sorted(file.relative_to(folder).as_posix() for file in files))


def _owned(folder: Path) -> set[str]:
    """Return the names of the files of an older export in a folder, which a new one may replace.

    Raises:
        UserError: the folder holds something else than an export and hidden files, such as those of git.

    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RUN not in names and ({MODEL, WEIGHTS, PROCESSOR} <= names or {MODEL, ADAPTER, CHECKSUMS} <= names):
        try:
            return set(folder_checksums(folder, RESTORE))
        except UserError:  # of a version before 0.2, or damaged
            detectors = {name for kind in KINDS.values() for name in (SETTINGS, *kind.files)}
            return {*FILES, TOKENIZER_CONFIG, ORIGIN, CARD, *(f"{DETECTOR}/{name}" for name in detectors)}
    if RUN not in names and CHECKSUMS in names:
        own = folder_checksums(folder, RESTORE).keys()
        if MODEL in own and own & {WEIGHTS, ADAPTER}:
            return set(own)  # one that was cut off
    if (folder.exists() and not folder.is_dir()) or any(not name.startswith(".") for name in names):
        raise UserError(f"{folder} is not empty and not an export; choose another folder")
    return set()


def _replace(folder: Path, owned: set[str]) -> None:
    """Move the files of a complete new export from `NEW` to the folder itself, and remove other files in `owned`.

    The new checksums come first: until all files are in place, the folder does not match them and cannot be opened.
    """
    new = folder / NEW
    names, detector = folder_checksums(new, RESTORE).keys(), folder / DETECTOR
    blocked = [folder / name for name in (*names, CHECKSUMS) if (folder / name).is_dir()]
    if detector.is_symlink() or (detector.exists() and not detector.is_dir()):
        blocked.append(detector)
    if blocked:
        raise UserError(f"{blocked[0]} is in the way of the export; move it, or choose another folder")
    with writing(folder):
        _keep_edited_card(folder)
        os.replace(new / CHECKSUMS, folder / CHECKSUMS)
        for name in owned - names:
            (folder / name).unlink(missing_ok=True)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(new / name, folder / name)


def _keep_edited_card(folder: Path) -> None:
    """Rename the model card of an older export if someone may have edited it."""
    card = folder / CARD
    if not card.exists() or card.read_bytes() == (folder / NEW / CARD).read_bytes():
        return
    try:
        if folder_checksums(folder, RESTORE)[CARD].sha256 == sha256(card):
            return
    except (UserError, KeyError):
        pass  # unknown
    number = 1
    while (kept := card.with_suffix(f".old{number}.md")).exists():
        number += 1
    os.replace(card, kept)
    logger.warning("%s was edited since it was exported and is now %s", card, kept.name)


def _same_extractor(own: Extractor, given: Mapping[str, Any]) -> RegionExtractor:
    """Open what made a run's regions, with the settings that they were made with."""
    parts, options = {**own.recipe, **given}, {}
    if moved := sorted(name for name in own.recipe.keys() - given if _is_gone(parts[name])):
        typed = ", ".join(f"--{name.replace('_', '-')}" for name in moved)
        raise UserError(f"{parts[moved[0]]}, which the regions were made with, does not exist; give {typed} again")
    if "features" in parts and "features_side" in own.parameters:  # a backbone is opened for one side
        options["features_side"] = own.parameters["features_side"]
    found = load_extractor(**parts, options=options)
    known = found.extractor.parameters
    found.configure({name: value for name, value in own.parameters.items() if name in known})
    if conflict := own.conflict(found.extractor):
        raise UserError(
            f"{found.name} ({conflict}) is not the extractor {own.name} of the run; give what made its regions as "
            f"--where and the other options of `dimvl extract`, or --where {NO_DETECTOR} to export without it"
        )
    return found


def _is_gone(name: str) -> bool:
    """Whether a name is that of a file or folder that does not exist any more."""
    return Path(name).is_absolute() and not Path(name).exists()


def find_export(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an export; a model on the hub is downloaded once, at a revision or the newest one."""
    if (folder := folder_or_hub_name(str(name), "an export")) is None:
        return download(str(name), revision)
    if revision is not None:
        raise UserError(f"{name} is a folder, which has no revision {revision!r}; omit it, or give a name on the hub")
    return folder


def check_export(folder: Path) -> None:
    """Check that an export has all its files.

    Raises:
        UserError: one is missing, or the folder is a run.

    """
    existing_folder(folder)
    if (folder / ADAPTER).exists() and not (folder / RUN).exists():
        base = read_adapter(folder).base
        raise UserError(
            f"{folder} is an adapter of {base}; open its base, and give this folder as --adapter or, in Python, to "
            "with_adapter; a command without --adapter takes what `dimvl export RUN OUT --merge` writes of both"
        )
    if (folder / RUN).exists():
        raise UserError(f"{folder} is a run; write an export with `dimvl export {folder} OUT` and give OUT")
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if not lacking and (name := missing_file(folder / DETECTOR)):
        lacking = [f"{DETECTOR}/{name}"]
    if lacking:
        raise UserError(f"{folder} lacks {lacking[0]}; {RESTORE}, or give the folder of an export")
