"""Weights on disk: safetensors, written whole; the header is checked before anything is read or built.

Not imported by the package itself, since this needs torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dimvl.errors import UserError
from dimvl.files.reading import open_regular
from dimvl.files.writing import atomic_path
from dimvl.showing import short

LARGEST = 2**40
"""Bytes of a file of weights."""
LARGEST_HEADER = 2**24
"""Bytes of the description of all weights in it; 100,000 weights take about 12 MB."""
FLOATS = {"F64", "F32", "F16", "BF16"}
POSITIONS = "position_ids"
"""The last part of the name of a buffer that transformers before 4.31 saved with BERT: 0, 1, 2 and so on."""


class Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled, because those of a file replace them."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named weights as safetensors, whole or not at all.

    Raises:
        UserError: the disk is full or the path is not writable.

    """
    with atomic_path(path) as temporary, full_disk():
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, temporary)


@contextmanager
def full_disk() -> Iterator[None]:
    """Turn what safetensors raises for a full disk into an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def weight_shapes(path: Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in a safetensors file from its header alone, without BERT's `position_ids`.

    Raises:
        UserError: it is missing, unreadable or damaged, or holds something else than floating-point weights.

    """
    with open_regular(path, LARGEST) as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        raise UserError(f"{path} is not a whole safetensors file (its header would have {header:,} bytes); {remedy}")
    shapes = {}
    try:
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a mapping
                if name.rpartition(".")[2] == POSITIONS:
                    continue
                part = opened.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                if part.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{path}: {name} has the type {part.get_dtype()}, which weights never have; {remedy}"
                    )
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({short(str(error))}); {remedy}") from None
    return shapes


def load_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file; raises like `weight_shapes`."""
    with open_regular(path, LARGEST):
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({short(str(error))}); {remedy}") from None
