"""The steps that wandb has stored in offline mode, read from its own files.

wandb writes `run-ID.wandb`: records in LevelDB's log format after a header of 7 bytes. In each block of 32 KiB, every
record or fragment of one has a checksum (4 bytes, not verified here), a length (2) and a type (1: whole, 2: first, 3:
middle, 4: last). The records are wandb's own protocol buffers. wandb writes block by block, so the file of a killed
process may end anywhere, and the last rows that wandb was given may be missing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32 * 1024, 7
WHOLE, FIRST, LAST = 1, 2, 4


def offline_rows(run: Path, identity: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a wandb run, over all its starts and oldest first; `_step` is the step.

    Args:
        run: the folder that contains wandb's own folder.
        identity: id of the wandb run.

    """
    # wandb appends a number to the folder of a second start within one second
    for file in sorted(run.glob(f"wandb/offline-run-*-{identity}*/run-{identity}.wandb")):
        for record in offline_records(file):
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


def offline_records(file: Path) -> Iterator[Any]:
    """Yield the complete records of one file."""
    from wandb.proto import wandb_internal_pb2

    whole = b""
    for kind, piece in _pieces(file.read_bytes()):
        whole = piece if kind in (WHOLE, FIRST) else whole + piece
        if kind in (WHOLE, LAST):
            record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            yield record


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = HEADER
    while place + HEADER <= len(data):
        if (rest := BLOCK - place % BLOCK) < HEADER:  # too short for a piece
            place += rest
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece = data[place + HEADER : place + HEADER + length]
        if len(piece) < length or not kind:
            return
        yield kind, piece
        place += HEADER + length
