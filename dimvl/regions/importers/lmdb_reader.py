"""Reads an LMDB in a separate process: `python -m dimvl.regions.importers.lmdb_reader FILE`.

LMDB follows offsets in the mapped file without checking them, so a damaged file can kill the reading process (SIGBUS);
`lmdb.py` sends requests here and survives. A request is one byte: f(irst), n(ext) or v(alue). A reply is its length in
eight bytes and its content: at the start the number of entries and the value of `__keys__`, then keys (empty after the
last one) and values.
"""

import os
import sys

MAX_NAMES = 2**25
"""Bytes of a list of names; a longer one is not compared."""


def main() -> None:
    """Reply to requests on stdin until it is closed."""
    import lmdb

    file = sys.argv[1]
    try:
        environment = lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False)
        pages = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if (size := os.path.getsize(file)) < pages:
            sys.exit(f"it is cut off: {size:,} bytes of {pages:,}")
        _reply(str(environment.stat()["entries"]).encode())
        with environment.begin(buffers=True) as transaction:
            names = transaction.get(b"__keys__", b"")
            _reply(names if len(names) < MAX_NAMES else b"")
            cursor = transaction.cursor()
            while request := sys.stdin.buffer.read(1):
                if request == b"v":
                    _reply(cursor.value())
                else:
                    found = cursor.first() if request == b"f" else cursor.next()
                    _reply(cursor.key() if found else b"")
    except lmdb.Error as error:
        sys.exit(str(error))


def _reply(data: bytes | memoryview) -> None:
    sys.stdout.buffer.write(len(data).to_bytes(8, "little"))
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
