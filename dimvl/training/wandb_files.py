"""What wandb has written in offline mode, read back: the steps that are there and the values of each.

wandb writes `run-ID.wandb`, records in the log format of LevelDB behind a header of 7 bytes: blocks of 32 KiB, in which
a record, or a piece of it, has a checksum (4 bytes, not compared here), a length (2) and a type (1: whole, 2: first,
3: middle, 4: last). Records are protocol buffers of wandb's own. wandb writes block by block, so the file of a killed
process ends anywhere, and rows that it had been given are missing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32 * 1024, 7
WHOLE, FIRST, LAST = 1, 2, 4


def offline_rows(run: Path, identity: str) -> Iterator[dict[str, Any]]:
    """Rows of a run, oldest first, with the step as `_step`; of all its parts, one for each time it was started.

    Args:
        run: the folder that wandb writes its own folder into.
        identity: of the wandb run.

    """
    # a start within the same second as another one gets a number at its end
    for file in sorted(run.glob(f"wandb/offline-run-*-{identity}*/run-{identity}.wandb")):
        for record in offline_records(file):
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


def offline_records(file: Path) -> Iterator[Any]:
    """Records of one file, as far as it is whole."""
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
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is too short for a piece
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece = data[place + HEADER : place + HEADER + length]
        if len(piece) < length or not kind:
            return
        yield kind, piece
        place += HEADER + length
