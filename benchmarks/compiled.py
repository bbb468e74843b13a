"""What `torch.compile` gains each variant, tried before the variants are timed, so that each is timed at its best."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch._inductor.utils import fresh_cache

from benchmarks.harness import interleaved, ratio


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant as it is, and once more to be compiled.

    Attributes:
        plain: runs it.
        compile: compiles the other; whatever this raises is why the variant is told as not compiled.
        compiled: runs the other.
        check: raises ValueError where the two compute different things.

    """

    plain: Callable[[], object]
    compile: Callable[[], object]
    compiled: Callable[[], object]
    check: Callable[[], object]


@dataclass(kw_only=True)
class Compiled:
    """By variant: time compiled over not compiled, processor seconds to compile, or why it is not compiled."""

    compiled_over_eager: dict[str, list[float]] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    not_compiled: dict[str, str] = field(default_factory=dict)

    def compiles(self, name: str) -> bool:
        """Whether a variant is quicker compiled."""
        return name in self.compiled_over_eager and self.compiled_over_eager[name][0] < 1


def try_compiled(trials: Mapping[str, Trial], rounds: int, device: str) -> Compiled:
    """Compile, check and time.

    Raises:
        ValueError: a variant computes something else when it is compiled.

    """
    found, runs = Compiled(), {}
    for name, trial in trials.items():
        before = sum(os.times()[:4])
        try:
            with fresh_cache():  # of what other runs have compiled, which would take a tenth of the time
                trial.compile()
        except Exception as error:
            found.not_compiled[name] = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": ")
            continue
        found.compile_seconds[name] = round(sum(os.times()[:4]) - before, 1)
        trial.check()
        runs |= {(name, False): trial.plain, (name, True): trial.compiled}
    seconds = interleaved(runs, rounds, device)
    for name in found.compile_seconds:
        found.compiled_over_eager[name] = ratio(seconds[name, True], seconds[name, False])
    return found
