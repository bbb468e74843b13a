"""Print a study of adapters as a table: trained weights, memory beyond the weights, and scores.

python -m tools.adapter_table runs/studies/scenes-adapters [--score overall]

Run it where the study ran. The trained weights are those of the run of the first seed at the last point; the memory is
what `dimvl plan` computes for this run with the torch engine, without the weights themselves: gradients, optimiser
states, activations and the batch. A score is the mean over seeds, beside its difference from the baseline with the
interval over images; the difference is bold if the study claims it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dimvl.checkpoints import run_arguments
from dimvl.files import read_json
from dimvl.planning import Cluster, make_plan
from dimvl.tasks import CONFIGS
from tools.stages import told_by


class Cost(NamedTuple):
    """Trained weights, all weights, and bytes of a training beyond its weights."""

    trained: int
    parameters: int
    bytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--score", default="overall", help="which score")
    arguments = parser.parse_args()
    with told_by(parser):
        results = read_json(arguments.study / "results.json")
        scores = [record for record in results["scores"] if record["score"] == arguments.score]
        settings = list(dict.fromkeys(record["setting"] for record in scores))
        last, seed = scores[-1]["x"], results["seeds"][0]
        costs = {name: cost_of(arguments.study / name / f"{last}-{seed}") for name in settings}
    print("\n".join(table(scores, costs, results["baseline"])))


def cost_of(run: Path) -> Cost:
    """Plan the training of a run."""
    config = run_arguments(run)["config"]
    plan = make_plan(CONFIGS[config["task"]].model_validate(config), Cluster(gpus=1))
    memory = plan.memory[0]
    total = sum(plan.parameters.values())
    return Cost(plan.trained, total, memory.total - memory.weights)


def table(scores: Sequence[Mapping[str, Any]], costs: Mapping[str, Cost], baseline: str) -> list[str]:
    """Return the lines of the table."""
    points = list(dict.fromkeys(record["x"] for record in scores))
    titles = ["setting", "trained weights", "share", "memory beyond weights", *(f"with {x}" for x in points)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, cost in costs.items():
        share = cost.bytes / costs[baseline].bytes
        cells = [name, f"{cost.trained:,}", f"{cost.trained / cost.parameters:.2%}", f"{share:.2f} of {baseline}"]
        found = {record["x"]: record for record in scores if record["setting"] == name}
        lines.append("| " + " | ".join([*cells, *(score(found[x]) for x in points)]) + " |")
    return lines


def score(record: Mapping[str, Any]) -> str:
    """Return a score, and its difference from the baseline with the interval over images."""
    if (minus := record.get("minus_baseline")) is None:
        return f"{record['mean']:.3f}"
    low, high = minus["over_images"]
    shown = f"{minus['value']:+.3f}"
    if "no difference" not in minus["verdict"]:
        shown = f"**{shown}**"
    return f"{record['mean']:.3f}, {shown} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
