"""The size of the models that predict."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Base size, unless told otherwise, on the regions of bottom-up attention."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    inner_width: int = 3072
    regions: int = 100
    feature_width: int = 2048

    @property
    def arguments(self) -> dict[str, int]:
        """Tell what a model asks of it."""
        return {
            "feature_width": self.feature_width,
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "inner_width": self.inner_width,
        }
