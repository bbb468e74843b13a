"""A profile as a table, and as plain values for JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dimvl.profiling.measure import Part, Profile


def title(profile: Profile) -> Iterator[str]:
    """Yield the lines above the table."""
    where = f"cpu (threads: {profile.threads})" if profile.device == "cpu" else profile.device
    yield (
        f"{profile.steps} steps of {profile.examples:,.0f} examples and {profile.rows:,.0f} rows; "
        f"{profile.precision} on {where}: {profile.seconds * 1e3:,.1f} ms per step "
        f"({profile.processor_seconds * 1e3:,.1f} of CPU time), data wait "
        f"{profile.data_wait / profile.seconds:.0%}, memory {profile.memory_gb:.1f} GB"
    )
    yield (
        f"{profile.flops / 1e9:,.1f} GFLOP per step, {profile.flops / profile.seconds / 1e9:,.0f} GFLOP/s: "
        f"{profile.utilisation:.0%} of the {profile.peak / 1e9:,.0f} GFLOP/s that matrix products alone reach; "
        f"a copy moves {profile.copy_rate / 1e9:,.0f} GB/s"
    )


def table(profile: Profile) -> Table:
    """Build the table, one row per part."""
    result = Table(box=SIMPLE_HEAD, show_footer=True)
    whole = sum(part.seconds for part in profile.parts)
    result.add_column("part", footer="all")
    feet = {
        "share": "100%",
        "ms": _ms(whole),
        "forward": _ms(sum(part.forward for part in profile.parts)),
        "backward": _ms(sum(part.backward for part in profile.parts)),
        "GFLOP": f"{sum(part.flops for part in profile.parts) / 1e9:,.1f}",
    }
    for name, foot in feet.items():
        result.add_column(name, foot, justify="right", no_wrap=True)
    for name in ("GFLOP/s", "of peak"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("bound by")
    for part in profile.parts:
        result.add_row(part.name, f"{part.seconds / whole:.1%}", *_cells(part, profile.peak), part.roof)
    return result


def _cells(part: Part, peak: float) -> Iterator[str]:
    yield _ms(part.seconds)
    yield _ms(part.forward)
    yield _ms(part.backward) if part.backward else ""
    if not part.flops or not part.seconds:
        yield from ("", "", "")
        return
    yield f"{part.flops / 1e9:,.1f}"
    yield f"{part.flops / part.seconds / 1e9:,.0f}"
    yield f"{part.flops / part.seconds / peak:.0%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def as_values(profile: Profile) -> dict[str, Any]:
    """Convert a profile to plain values in seconds, operations and bytes; those of a part are per average step."""
    values = asdict(profile) | {"utilisation": profile.utilisation}
    values["parts"] = [asdict(part) | {"seconds": part.seconds} for part in profile.parts]
    return values
