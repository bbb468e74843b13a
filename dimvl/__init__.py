"""Vision-language pretraining with region features and modality-decoupled attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimvl.predictor import Predictor
    from dimvl.regions.store import RegionStore
    from dimvl.trained_model import load_model

__version__ = "0.2.0"
__all__ = ["Predictor", "RegionStore", "__version__", "load_model"]

_MODULES = {"Predictor": "dimvl.predictor", "RegionStore": "dimvl.regions.store", "load_model": "dimvl.trained_model"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import dimvl` is fast and needs no torch (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
