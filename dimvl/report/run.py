"""The page of one run: learning curves, validation scores and sample predictions, also while it trains."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.checkpoints import LOG, PREDICTIONS, read_log, run_arguments
from dimvl.report.curves import read_losses, read_scores
from dimvl.report.page import drawn_curves, write_page

PAGE = "report.html"
VALIDATIONS = 20  # the newest in the table, besides the best; the curve has all
RATES = {
    "examples_per_second": "examples/s",
    "rows_per_second": "rows/s",
    "data_wait": "share of time waiting for data",
    "rank_wait": "share of time waiting for other ranks",
    "utilisation": "share of the peak speed of matrix products",
    "memory_gb": "peak memory, GB",
    "gradient_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
}
"""Fields of a step's report that the page shows of the newest one, and their names there."""


def write_run_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, and return its path: by default `report.html` in the run's folder.

    Raises:
        UserError: the folder is not a run, its log cannot be read, or the page cannot be written.

    """
    described = run_arguments(run)
    log, predictions, page = run / LOG, run / PREDICTIONS, out or run / PAGE
    records = read_log(log) if log.exists() else []
    losses, scores = (read_losses(log), read_scores(log)) if records else ([], [])
    validations = [record for record in records if "validation" in record]
    steps = [record for record in records if "validation" not in record]
    write_page(
        page,
        Path(__file__).with_name("run.html.jinja"),
        title=run.resolve().name,
        facts=_facts(described),
        newest=steps[-1] if steps else None,
        left=str(datetime.timedelta(seconds=round(steps[-1].get("seconds_left", 0)))) if steps else "",
        rates=[(name, steps[-1][key]) for key, name in RATES.items() if key in steps[-1]] if steps else [],
        losses=drawn_curves("Losses", "Losses", losses),
        score=drawn_curves("Validation score", "Validation score", scores[:1], logarithmic=False),
        validations=_table(validations),
        best=validations[-1] if validations else None,
        samples=_samples(read_log(predictions) if predictions.exists() else []),
    )
    return page


def _facts(described: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the run is, from its `run.json`; keys that it lacks are left out."""
    config = described["config"]
    model, training = config.get("model", {}), config.get("training", {})
    versions = described.get("versions", {})
    found = {
        "Task": config.get("task"),
        "Started from": config.get("initial") or model.get("bert") or "random weights",
        "Layers": model.get("layers"),
        "Width": model.get("width"),
        "Separate by modality": ", ".join(model.get("split") or []) or None,
        "Steps": training.get("steps"),
        "Rows per step": training.get("rows_per_step"),
        "Learning rate": training.get("learning_rate"),
        "Precision": training.get("precision"),
        "Seed": config.get("seed"),
        "dimvl": versions.get("dimvl"),
        "torch": versions.get("torch"),
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _table(validations: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Scores of the newest validations and of the best one, newest first, with their parts."""
    if not validations:
        return None
    best, first = validations[-1].get("best_step"), len(validations) - VALIDATIONS
    shown = [record for place, record in enumerate(validations) if place >= first or record["step"] == best]
    parts = list(dict.fromkeys(name for record in shown for name in record.get("validation_parts", {})))
    rows = [
        [record["step"], record["validation"], *(record.get("validation_parts", {}).get(name) for name in parts)]
        for record in reversed(shown)
    ]
    return {"columns": ["Step", "Score", *parts], "rows": rows, "best": best, "count": len(validations)}


def _samples(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Predictions of the newest validation as a table: a row for each, a column for each of its fields."""
    if not records or not records[-1]["predictions"]:
        return None
    newest = records[-1]
    columns = list(dict.fromkeys(name for prediction in newest["predictions"] for name in prediction))
    rows = [[_lines(prediction.get(name, "")) for name in columns] for prediction in newest["predictions"]]
    return {"step": newest["step"], "columns": columns, "rows": rows}


def _lines(value: Any) -> list[Any]:
    """The value of a field as lines of a cell."""
    values = value if isinstance(value, list) else [value]
    return [" ".join(map(str, part)) if isinstance(part, list) else part for part in values]
