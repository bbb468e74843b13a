"""Export of a run: one folder with everything that predictions need, in the conventions of the Hugging Face hub.

config.json           the model's arguments
model.safetensors     the weights
processor.json        extractor, limits, answer vocabulary
tokenizer.json, tokenizer_config.json
trained_on.npy        hashes of the images that it was trained on
training.json         seed, data and code revision of the run
detector/             the detector of the regions that the model was trained with
README.md             model card: data, configuration, code revision, measured scores
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_model

from dimvl.checkpoints import MODEL, ORIGIN, WEIGHTS, origin_of, run_arguments
from dimvl.data.trained_on import FILE as TRAINED_ON
from dimvl.data.trained_on import copy_trained_on
from dimvl.errors import UserError
from dimvl.files import HUB_NAME, atomic_folder, read_json, write_json
from dimvl.regions.detectors.base import KIND, SETTINGS, RegionDetector
from dimvl.regions.detectors.load import NO_DETECTOR, SCENES, load_detector, missing_file
from dimvl.regions.records import Extractor
from dimvl.tasks import abilities_of, task_of_model
from dimvl.trained_model import TrainedModel, load_model

CARD = "README.md"
DETECTOR = "detector"
FILES = (MODEL, WEIGHTS, "processor.json", "tokenizer.json", TRAINED_ON, f"{DETECTOR}/detector.json")


def export(
    run: Path,
    out: Path,
    detector: str | Path = SCENES,
    scores: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    classes: Path | None = None,
) -> Path:
    """Write a run's best checkpoint (without validation the newest) as an export, completely or not at all.

    Args:
        run: folder of the run.
        out: folder to write; an older export there is replaced.
        detector: the detector of the run's regions, as in `load_detector`; it gets the settings that the regions were
            made with. With `none`, the export takes regions but no images.
        scores: measured scores for the model card: names to numbers, or to such mappings.
        weights: as in `load_detector`.
        classes: as in `load_detector`.

    Returns:
        `out`.

    Raises:
        UserError: `run` is not a run, `out` holds something else, or the detector is not that of the run.

    """
    arguments = run_arguments(run)
    trained = load_model(run)
    is_export = all((out / name).is_file() for name in (*FILES[:3], CARD))
    if out.exists() and not (is_export or (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out} is not empty and not an export; choose another folder")
    found = None if detector == NO_DETECTOR else _same_detector(trained.processor.extractor, detector, weights, classes)
    with atomic_folder(out) as temporary:
        write_json(temporary / MODEL, read_json(run / MODEL))
        try:
            save_model(trained.model, str(temporary / WEIGHTS))
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error
        trained.processor.save(temporary)
        copy_trained_on(temporary, trained.trained_on)
        write_json(temporary / ORIGIN, origin_of(run))
        if found is None:
            write_json(temporary / DETECTOR / SETTINGS, {KIND: NO_DETECTOR})
        else:
            found.save(temporary / DETECTOR)
        card = _model_card(trained, arguments, scores or {}, found is not None)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return out


def _same_detector(own: Extractor, name: str | Path, weights: str | None, classes: Path | None) -> RegionDetector:
    """Open the detector of a run's regions, with the settings that they were made with."""
    found = load_detector(name, weights=weights, classes=classes)
    settings = found.extractor.parameters
    found.configure({key: value for key, value in own.parameters.items() if key in settings})
    if conflict := own.conflict(found.extractor):
        raise UserError(
            f"detector {name} ({conflict}) is not the extractor {own.name} of the run; give its folder as --detector, "
            f"or {NO_DETECTOR} to export without one"
        )
    return found


def find_export(name: str | Path) -> Path:
    """Return the folder of an export; a model on the hub is downloaded once."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    # "exports/vqa" looks like a name on the hub, but a folder is meant if "exports" is one.
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name) or folder.parent.is_dir():
        raise UserError(f"{name} does not exist; give the folder of an export or a model's name on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} is neither a local folder nor a model on the hub ({reason}); check the name"
        ) from error


def check_export(folder: Path) -> None:
    """Check that an export has all its files.

    Raises:
        UserError: one is missing.

    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; run `dimvl export`, or copy the whole export")
    if lacking := missing_file(folder / DETECTOR):
        raise UserError(f"{folder} lacks {DETECTOR}/{lacking}; run `dimvl export`, or copy the whole export")


def _model_card(
    trained: TrainedModel, arguments: Mapping[str, Any], scores: Mapping[str, Any], has_detector: bool
) -> str:
    """Return the model card (hub metadata, usage, data, scores, configuration); `arguments` is the run's `run.json`."""
    config, data = arguments["config"], arguments["data"]
    synthetic = any(entry["synthetic"] for entry in data.values())
    processor, task = trained.processor, task_of_model(trained.processor)
    tags = ["dimvl", task.name, *(["synthetic-data"] if synthetic else [])]
    metadata = {"library_name": "dimvl", "pipeline_tag": task.pipeline_tag, "tags": tags}
    parameters = sum(weight.numel() for weight in trained.model.parameters())
    origin, versions = config.get("initial"), ", ".join(map(" ".join, arguments["versions"].items()))
    begin = ["```python", "from dimvl import Predictor", "", 'predictor = Predictor.from_pretrained("this folder")']
    usage = [*begin, *(ability.example for ability in abilities_of(processor).values()), "```"]
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# dimvl: {task.name}",
        "",
        f"A region-based vision-language model with modality-decoupled attention ({parameters / 1e6:.2f} million "
        "weights). "
        + (
            "The folder includes the detector, so it takes images."
            if has_detector
            else "The folder has no detector: it takes the regions of a store, not images."
        ),
        "",
        *(usage if has_detector else ["```", "dimvl evaluate FOLDER --regions STORE", "```"]),
        "",
        "## Data",
        "",
        *(["**The training data is synthetic**: generated scenes, no photographs.", ""] if synthetic else []),
        *(_data_line(name, entry) for name, entry in data.items()),
        f"- regions: `{processor.extractor.name}`, fingerprint `{processor.extractor.fingerprint}`",
        f"- started from: {f'`{Path(origin).name}`' if origin else 'random weights'}",
        "",
        "## Scores",
        "",
        *(_score_table(scores) if scores else ["The model was exported without scores."]),
        "",
        "## Configuration",
        "",
        "```yaml",
        yaml.safe_dump(_without_folders(config), sort_keys=False).strip(),
        "```",
        "",
        f"Code: git revision {arguments['git_revision'] or 'unknown'}; {versions}.",
        "",
    ]
    return "\n".join(lines)


def _data_line(name: str, entry: Mapping[str, Any]) -> str:
    description = f", {entry['description']}" if entry["description"] else ""
    return f"- {name}: `{entry['file']}`{description}, SHA-256 `{entry['sha256']}`"


def _score_table(scores: Mapping[str, Any], place: str = "") -> list[str]:
    rows = [] if place else ["| score | value |", "|---|---|"]
    for name, value in scores.items():
        if isinstance(value, Mapping):
            rows += _score_table(value, f"{place}{name} / ")
        else:
            rows.append(f"| {place}{name} | {f'{value:.4f}' if isinstance(value, float) else value} |")
    return rows


def _without_folders(value: Any) -> Any:
    """Reduce paths to their last part, so that the card names no folders of the machine."""
    if isinstance(value, Mapping):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value
