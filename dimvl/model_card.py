"""The model card of an export: hub metadata, usage, data, scores, configuration.

Names, descriptions and scores come from files of other people, so Markdown and HTML in them are escaped.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dimvl.checkpoints import DataFile, Origin, Start
from dimvl.files import HUB_NAME
from dimvl.showing import visible
from dimvl.tasks import abilities_of, task_of_model
from dimvl.trained_model import TrainedModel

_MARKUP = re.compile(r"([\\`*_\[\]|~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def model_card(
    trained: TrainedModel,
    arguments: Mapping[str, Any],
    origin: Origin,
    scores: Mapping[str, Any],
    has_detector: bool,
    base: str | None = None,
) -> str:
    """Return the model card.

    Args:
        trained: the model, not packed for prediction.
        arguments: the content of the run's `run.json`.
        origin: how the model was trained.
        scores: measured scores: names to numbers, or to such mappings.
        has_detector: whether the export has a detector.
        base: the base of an adapter.

    """
    config = arguments["config"]
    processor, task = trained.processor, task_of_model(trained.processor)
    tags = ["dimvl", task.name, *(["synthetic-data"] if origin.synthetic else [])]
    metadata: dict[str, Any] = {"library_name": "dimvl", "pipeline_tag": task.pipeline_tag, "tags": tags}
    if base is not None and HUB_NAME.fullmatch(base):
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    versions = ", ".join(f"{name} {version}" for name, version in arguments["versions"].items())
    begin = ["```python", "from dimvl import Predictor", ""]
    if base is None:
        begin.append('predictor = Predictor.from_pretrained("this folder")')
    else:
        begin.append(f'predictor = Predictor.from_pretrained({json.dumps(base)}).with_adapter("this folder")')
    usage = [*begin, *(ability.example for ability in abilities_of(processor).values()), "```"]
    settings = yaml.safe_dump(_without_folders(config), sort_keys=False).strip()
    fence = "`" * _ticks(settings, least=3)
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# dimvl: {task.name}",
        "",
        f"A region-based vision-language model with modality-decoupled attention "
        f"({trained.num_parameters / 1e6:.2f} million parameters). {_what_it_has(has_detector, base)}",
        "",
        *([SYNTHETIC, ""] if origin.synthetic else []),
        *(
            usage
            if has_detector or base is not None
            else ["```", evaluate_command(task.evaluation.model_fields), "```"]
        ),
        "",
        "## Data",
        "",
        *(data_line(name, file) for name, file in origin.data.items()),
        f"- regions: {code(processor.extractor.name)}, fingerprint {code(processor.extractor.fingerprint)}",
        *_started_from(origin.start),
        *(
            f"- {code(key)}: the model {code(judge.name)}, SHA-256 {code(str(judge.sha256))}"
            for key, judge in origin.judges.items()
        ),
        "",
        "## Scores",
        "",
        *(_score_table(scores) if scores else ["The model was exported without scores."]),
        "",
        "## Configuration",
        "",
        f"{fence}yaml",
        settings,
        fence,
        "",
        f"Code: git revision {plain(arguments['git_revision'] or 'unknown')}; {plain(versions)}.",
        "",
    ]
    return "\n".join(lines)


def _what_it_has(has_detector: bool, base: str | None) -> str:
    if base is not None:
        return f"The folder has an adapter alone: it needs its base, {code(base)}, which has the detector."
    if has_detector:
        return "The folder includes the detector, so it takes images."
    return "The folder has no detector: it takes the regions of a store, not images."


SYNTHETIC = (
    "**This model knows synthetic scenes only**: it was trained on generated images, and what it says about "
    "photographs means nothing."
)


def evaluate_command(fields: Mapping[str, Any]) -> str:
    """Return the command that evaluates an export, with the files that its task requires."""
    files = [f"{name}={name.upper()}" for name, field in fields.items() if field.is_required()]
    return " ".join(["dimvl evaluate FOLDER --regions STORE", *files])


def plain(text: object) -> str:
    """Escape text for one line of Markdown, also in a table."""
    line = _MARKUP.sub(r"\\\1", visible(" ".join(str(text).split())))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line)


def code(text: str) -> str:
    """Quote text as code in one line of Markdown."""
    line = visible(" ".join(text.split()))
    ticks = "`" * _ticks(line, least=1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def _ticks(text: str, least: int) -> int:
    """Return how many backticks quote a text that may contain some."""
    return max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)


def data_line(name: str, file: DataFile) -> str:
    """Return the line of a file of the training."""
    description = f", {plain(file.description)}" if file.description else ""
    synthetic = ", synthetic" if file.synthetic and "synthetic" not in file.description else ""
    return f"- {plain(name)}: {code(file.file)}{description}{synthetic}, SHA-256 {code(file.sha256)}"


def _started_from(start: Start | None, indent: str = "") -> list[str]:
    """Return lines on what a run started from."""
    if start is None:
        return [f"{indent}- started from: random weights"]
    digest = f", SHA-256 {code(start.sha256)}" if start.sha256 else ""
    lines = [f"{indent}- started from: the {'encoder' if start.encoder else 'model'} {code(start.name)}{digest}"]
    if start.encoder:
        return lines
    inner = [f"{indent}  {data_line(name, file)}" for name, file in start.data.items()]
    return [*lines, *inner, *_started_from(start.start, f"{indent}  ")]


def _score_table(scores: Mapping[str, Any], place: str = "") -> list[str]:
    rows = [] if place else ["| score | value |", "|---|---|"]
    for name, value in scores.items():
        if isinstance(value, Mapping):
            rows += _score_table(value, f"{place}{name} / ")
        else:
            rows.append(f"| {plain(f'{place}{name}')} | {_score(value)} |")
    return rows


def _score(value: Any) -> str:
    """Write a score, or an interval [low, high]."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, float) for end in value):
        return " to ".join(map(_score, value))
    return f"{value:.4f}" if isinstance(value, float) else plain(value)


def _without_folders(value: Any) -> Any:
    """Reduce paths to their last part, so that the card names no folders of the machine."""
    if isinstance(value, Mapping):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value
