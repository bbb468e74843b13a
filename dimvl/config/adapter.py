"""The section `adapter`: a small set of weights to train, over a base that stays as it is."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dimvl.config.sections import Section, Split, distinct

Sublayer = Literal["qkv", "out", "ffn"]
KINDS = ("lora", "prefix", "prompt", "layers")
Modality = Literal["both", "vision", "language"]


class LoraConfig(Section):
    """Low-rank changes of the encoder's matrices (LoRA, Hu et al., ICLR 2022), through the package peft."""

    rank: int = Field(8, ge=1, le=4096, description="rank of each change")
    alpha: float = Field(16.0, gt=0, description="changes are multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before each change")
    sublayers: Annotated[list[Sublayer], AfterValidator(distinct), Field(min_length=1)] = Field(
        ["qkv"], description="sublayers whose matrices are changed; norms have none"
    )
    modality: Modality = Field(
        "both",
        description="whose weights are changed where `model.split` separates them; both: shared weights too",
    )

    def check_split(self, split: list[Split]) -> None:
        """Raise a `ValueError` if one modality is named where its weights are shared with the other."""
        if shared := [name for name in self.sublayers if self.modality != "both" and name not in split]:
            other = f", or sublayers to {own}" if (own := [name for name in self.sublayers if name in split]) else ""
            raise ValueError(
                f"adapter.lora.modality {self.modality!r} needs separate weights, and model.split {split} shares those "
                f"of {shared[0]!r}; set modality to 'both'{other}"
            )


class PrefixConfig(Section):
    """Keys and values of each layer that all rows attend to (prefix tuning, Li and Liang, ACL 2021)."""

    length: int = Field(16, ge=1, le=4096, description="keys and values in each layer")
    hidden: int | None = Field(
        None,
        ge=1,
        le=10**5,
        description="inner width of a perceptron that produces them during training; null trains them directly",
    )


class AdapterConfig(Section):
    """What is trained while the base, `initial`, stays frozen: lora, prefix, prompt or layers, or heads alone."""

    lora: LoraConfig | None = None
    prefix: PrefixConfig | None = None
    prompt: int | None = Field(
        None, ge=1, le=4096, description="number of trained soft rows at the end of each context (prompt tuning)"
    )
    layers: int | None = Field(
        None, ge=1, description="number of topmost Transformer blocks whose own weights are trained"
    )
    head: bool = Field(True, description="train the heads of the task too; false keeps those of the base")

    @model_validator(mode="after")
    def _one_kind(self) -> "AdapterConfig":
        kinds = [name for name in KINDS if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} are both set; keep one of them")
        if not kinds and not self.head:
            raise ValueError(
                "head is false and nothing else is set, so nothing is trained; set lora, prefix, prompt or layers"
            )
        return self

    @property
    def kind(self) -> str:
        """Its name: one of `KINDS`, or head."""
        return next((name for name in KINDS if getattr(self, name) is not None), "head")
