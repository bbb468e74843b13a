"""`dimvl bootstrap`: the blocks of one of several processes, and the settings that a folder of blocks belongs to.

    OUT/bootstrap.json              what the blocks depend on, with a checksum of itself
    OUT/blocks/00000012-1a2b3c4d    the lines of block 12, and their CRC-32

A block appears whole, by one rename, so an interrupted run loses at most the block of each process, and the same
command writes the missing ones, with any number of processes: block B belongs to process B modulo their number. Which
captions are in a block, and the batches they are in, depend on the files alone. The processes do not talk to each
other; the last one finds all blocks there and joins them (results.py).
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.bootstrap.results import Results, write_results
from dimvl.bootstrap.texts import WebTexts, blocks, read_sample
from dimvl.bootstrap.threshold import Threshold, choose_threshold
from dimvl.bootstrap.writing import BlockWriter
from dimvl.callbacks import Progress
from dimvl.checkpoints import origin_of, trained_files
from dimvl.data.trained_on import NOTHING, trained_images
from dimvl.errors import UserError
from dimvl.files import atomic_path, check_writable, read_bytes, read_sealed, write_sealed
from dimvl.regions.sources.base import Part
from dimvl.regions.store import RegionStore
from dimvl.showing import counted, with_others
from dimvl.training.texts import own_images

SETTINGS = "bootstrap.json"
WHOLE = Part(1, 1)
BLOCK = 512
"""Groups of consecutive captions of one image in a block."""
NAME = re.compile(r"(\d{8})-([0-9a-f]{8})\.jsonl")
REMEDY = "choose another output, or remove this one"


class Work(NamedTuple):
    """What all processes have to do: captions in groups of one image, and how many images they are of."""

    groups: int
    images: int


def bootstrap(
    config: BootstrapConfig, device: torch.device | str, part: Part = WHOLE, progress: Progress | None = None
) -> Results | None:
    """Write and score the captions of a part of the blocks; once all blocks are there, write the results.

    Args:
        config: what to do.
        device: where the models go.
        part: which of several processes this is.
        progress: called with (groups of captions done, groups in total), of this process.

    Returns:
        The results; None while blocks of other processes are missing.

    Raises:
        UserError: a model, the store and the captions do not fit together; the filter was trained on the captions; the
            output belongs to other settings, is damaged or cannot be written; or no threshold has the wanted precision.

    """
    check_writable(config.output)
    store = RegionStore(config.regions, check=True)
    writer = BlockWriter(config, store, device)
    texts = WebTexts(config, store, writer.filter.trained.processor)
    work = _survey(config, store, texts, _forbidden_images(config, writer, texts.checksums))
    _claim(config, writer, store, texts)
    threshold = _threshold(config, writer, store)
    _write_blocks(config.output, writer, texts, work, part, progress)
    files = _files(config.output)
    if len(files) < -(-work.groups // BLOCK):
        return None
    return write_results(config, writer, store, threshold, _lines(files), work.images, texts)


def _forbidden_images(config: BootstrapConfig, writer: BlockWriter, checksums: Sequence[str]) -> list[np.ndarray]:
    """Return for each file sorted hashes of the images that the filter must not have been trained on.

    BLIP's filter begins as a model that was pretrained on the captions to filter. So if the initial model, or one
    before it, was trained on a file, only images that the filter itself was fine-tuned on count for this file.

    Raises:
        UserError: it was fine-tuned on one of the files, or nothing says on which images.

    """
    if config.allow_trained:
        return [NOTHING] * len(checksums)
    origin = origin_of(config.filter)
    own = {file.sha256 for file in trained_files(origin.data)}
    before, start = set[str](), origin.start
    while start is not None:
        before |= {file.sha256 for file in trained_files(start.data)}
        start = start.start
    for path, checksum in zip(config.captions, checksums, strict=True):
        if checksum in own:
            raise UserError(
                f"filter {config.filter} was trained on {path} itself, so it may call the noise of that file a match; "
                "fine-tune it on clean captions, or accept it with allow_trained=true"
            )
    of_run = NOTHING if before.isdisjoint(checksums) else own_images(config.filter)
    if of_run is None:
        raise UserError(
            f"filter {config.filter} starts from a model that was trained on these captions, and does not say which "
            "images it was fine-tuned on itself; give its run, with the folder of its tokenised texts, or accept it "
            "with allow_trained=true"
        )
    return [of_run if checksum in before else writer.filter.trained.trained_on for checksum in checksums]


def _survey(config: BootstrapConfig, store: RegionStore, texts: WebTexts, forbidden: Sequence[np.ndarray]) -> Work:
    """Read all captions once, so that mistakes are told before any is written.

    Args:
        config: what to do.
        store: the regions.
        texts: the captions.
        forbidden: for each file, sorted hashes of images that the filter must not have been trained on.

    Raises:
        UserError: a mistake in a file, images that the store lacks, or one of `forbidden`.

    """
    groups = images = 0
    trained, example = np.zeros(len(store), dtype=bool), ""
    for of in texts:
        groups, images = groups + 1, images + of.first
        if trained_images([of.image_id], forbidden[of.file]):
            trained[of.position], example = True, example or of.image_id
    named = ", ".join(map(str, config.captions))
    texts.check_missing(named, config.missing == "error")
    if example:
        raise UserError(
            f"filter {config.filter} or its initial model was trained on {trained.sum():,} of the "
            f"{counted(images, 'image')} of {named}, such as {with_others(example, 1)}, and perhaps on these captions; "
            "fine-tune it on captions of other images, or accept it with allow_trained=true"
        )
    return Work(groups, images)


def _claim(config: BootstrapConfig, writer: BlockWriter, store: RegionStore, texts: WebTexts) -> None:
    """Write what blocks depend on into a new folder, or compare it.

    Raises:
        UserError: the folder belongs to other settings, or has other content.

    """
    sampling = config.sampling.model_dump() | {"max_tokens": writer.longest}
    settings = {
        "captioner": None if writer.captioner is None else writer.captioner.fingerprint,
        "filter": writer.filter.fingerprint,
        "score": config.score,
        "regions": store.fingerprint,
        "captions": texts.checksums,
        "split": config.split,
        "match": texts.rules,
        **({"seed": config.seed, "sampling": sampling} if writer.captioner else {}),
        "block": BLOCK,
    }
    file = config.output / SETTINGS
    # Looked at first: another process may write its settings in between.
    used = config.output.exists() and any(not path.name.startswith(".") for path in config.output.iterdir())
    if file.exists():
        found = read_sealed(file, REMEDY)
        if differing := [key for key in (*settings, *found) if found.get(key) != settings.get(key)]:
            raise UserError(
                f"{config.output} was begun with another value of {differing[0]}; give the same one, or {REMEDY}"
            )
    elif used:
        raise UserError(f"{config.output} is not empty and has no {SETTINGS}; {REMEDY}")
    else:
        write_sealed(file, settings)


def _threshold(config: BootstrapConfig, writer: BlockWriter, store: RegionStore) -> Threshold:
    """Return from which score a text is kept; raises as `choose_threshold`."""
    if config.keep is None:
        return Threshold()
    pairs, labels = read_sample(config.keep.sample, store, writer.filter.trained.processor, config.match)
    judged = writer.score([position for position, _ in pairs], [[text] for _, text in pairs])
    return choose_threshold([text.score for [text] in judged], labels, config.keep)


def _write_blocks(
    output: Path, writer: BlockWriter, texts: WebTexts, work: Work, part: Part, progress: Progress | None
) -> None:
    """Write the blocks of this process that are not there yet."""
    there = _files(output)
    own = range(part.number - 1, -(-work.groups // BLOCK), part.of)
    total = sum(min(BLOCK, work.groups - number * BLOCK) for number in own)
    if all(number in there for number in own):
        return
    done = 0
    for number, block in blocks(texts, BLOCK):
        if number not in own:
            continue
        if number not in there:
            content = "".join(json.dumps(line) + "\n" for line in writer.lines(block)).encode()
            with atomic_path(output / "blocks" / f"{number:08d}-{zlib.crc32(content):08x}.jsonl") as temporary:
                temporary.write_bytes(content)
        done += len(block)
        if progress is not None:
            progress(done, total)


def _files(output: Path) -> Mapping[int, tuple[Path, int]]:
    """Return file and CRC-32 of each block that is there, in order."""
    folder = output / "blocks"
    names = sorted(folder.iterdir()) if folder.exists() else []
    found = [(path, name) for path in names if (name := NAME.fullmatch(path.name))]
    return {int(name[1]): (path, int(name[2], 16)) for path, name in found}


def _lines(files: Mapping[int, tuple[Path, int]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of all blocks.

    Raises:
        UserError: a block does not match its checksum.

    """
    for path, checksum in files.values():
        content = read_bytes(path)
        if zlib.crc32(content) != checksum:
            raise UserError(f"{path} is damaged: it does not match the checksum in its name; remove it and run again")
        yield from map(json.loads, content.splitlines())
