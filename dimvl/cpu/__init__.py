"""What makes torch faster on a CPU, kept in one place: `linear.py`, `packed.py`, `memory.py` and the settings below.

Nothing here happens at import. `configure` is called by the command line before torch is imported, and once more by
`run_training`, `load_model` and the benchmarks, so that library users get the settings too.
"""

import os

SETTINGS = {
    # Two OpenMP threads that spin while waiting slow each other down tenfold and more on a busy machine. Read when
    # torch is imported, so only the command line calls `configure` early enough for it.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN compiles a kernel for each shape and keeps the last 1,024, and torch keeps as many wrappers around them.
    # Ragged batches rarely repeat a shape, so this grows to a gigabyte. A batch needs far fewer. Read at the first
    # product.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


def configure() -> None:
    """Set the environment variables in `SETTINGS`, except those the user has set; calling it again does nothing."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
