import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open

import dimvl.export
from dimvl.data.prefixes import make_prefix
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.export import FILES, check_export, export
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.scenes import Detector
from dimvl.tasks.answering.prediction import answer_probabilities
from dimvl.trained_model import TrainedModel, load_model
from tests.exports import all_abilities, make_detector, make_trained, write_run
from tests.factories import make_regions


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector()


@pytest.fixture(scope="module")
def trained(detector: Detector) -> TrainedModel:
    return make_trained(all_abilities(detector.extractor))


@pytest.fixture
def run(tmp_path: Path, trained: TrainedModel, detector: Detector) -> Path:
    detector.save(tmp_path / "detector")
    return write_run(tmp_path / "runs" / "secret-place", trained)


def export_tiny(run: Path, out: Path, **changes: object) -> Path:
    return export(run, out, **{"detector": run.parents[1] / "detector", **changes})  # type: ignore[arg-type]


def probabilities(trained: TrainedModel) -> torch.Tensor:
    prefix = make_prefix(make_regions(1), trained.processor.tags)
    return answer_probabilities(trained, [prefix], trained.tokenise(["is the star red"]))


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_computes_the_same_as_the_newest_checkpoint_of_its_run(run: Path, trained: TrainedModel) -> None:
    newer = make_trained(trained.processor, seed=9)
    write_run(run, newer, step=7)
    out = export_tiny(run, run.parent / "out")
    exported = probabilities(load_model(out))
    torch.testing.assert_close(exported, probabilities(newer), rtol=0, atol=0)
    assert not torch.equal(exported, probabilities(trained))


def test_an_export_opens_through_the_model_mixin_of_the_hub(run: Path, trained: TrainedModel) -> None:
    out = export_tiny(run, run.parent / "out")
    opened = DimvlModel.from_pretrained(out).eval()
    exported = TrainedModel(opened, Processor.load(out), out)
    torch.testing.assert_close(probabilities(exported), probabilities(trained), rtol=0, atol=0)
    assert opened.word_head.decoder.weight is opened.tokens.word.weight


def test_tied_weights_are_written_once(run: Path, trained: TrainedModel) -> None:
    out = export_tiny(run, run.parent / "out")
    with safe_open(out / "model.safetensors", "pt") as file:
        written = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is not a mapping
    statistics = trained.model.regions.feature_mean, trained.model.regions.feature_std
    wanted = [*trained.model.parameters(), *statistics]
    assert written == sum(tensor.numel() for tensor in wanted)


def test_an_export_has_processor_and_detector_of_the_run(run: Path, trained: TrainedModel, detector: Detector) -> None:
    out = export_tiny(run, run.parent / "out")
    check_export(out)
    loaded = Processor.load(out)
    assert loaded.tokenizer.fingerprint == trained.processor.tokenizer.fingerprint
    assert loaded.answers == trained.processor.answers and loaded.captions and loaded.matches
    assert Detector.load(out / "detector").extractor == detector.extractor == loaded.extractor


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_of_an_export_is_named(run: Path, name: str) -> None:
    out = export_tiny(run, run.parent / "out")
    (out / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        check_export(out)


def test_exporting_again_gives_the_same_bytes(run: Path) -> None:
    first = state(export_tiny(run, run.parent / "out"))
    assert state(export_tiny(run, run.parent / "out")) == first
    assert state(export_tiny(run, run.parent / "elsewhere")) == first


def test_a_detector_other_than_the_runs_is_refused_and_nothing_is_written(run: Path) -> None:
    make_detector(seed=1).save(run.parent / "other")
    with pytest.raises(UserError, match=r"is not the extractor tiny .* give its folder as --detector"):
        export_tiny(run, run.parent / "out", detector=run.parent / "other")
    assert not (run.parent / "out").exists()


def test_a_folder_that_is_not_an_export_is_not_overwritten(run: Path) -> None:
    out = run.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    for target in (out, run, run.parent):
        before = state(target)
        with pytest.raises(UserError, match="not empty and not an export"):
            export_tiny(run, target)
        assert state(target) == before


def test_an_older_export_is_replaced_completely(run: Path) -> None:
    out = export_tiny(run, run.parent / "out", scores={"vqa": 0.25})
    (out / "left-over").write_text("of the older one")
    assert "0.25" in (out / "README.md").read_text()
    export_tiny(run, out, scores={"vqa": 0.75})
    assert not (out / "left-over").exists()
    assert "0.25" not in (out / "README.md").read_text() and "0.75" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_older_export_unchanged(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    out = export_tiny(run, run.parent / "out")
    before = state(out)

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(dimvl.export, "save_model", full)
    with pytest.raises(UserError, match=r"No space left on device.*; free space"):
        export_tiny(run, out)
    assert state(out) == before
    assert sorted(path.name for path in run.parent.iterdir()) == ["out", run.name], "no half-written folder stays"


def test_only_a_run_can_be_exported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run of dimvl"):
        export_tiny(export_tiny(run, run.parent / "out"), run.parent / "again")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor a checkpoint"):
        export_tiny(run, run.parent / "again")


def test_the_model_card_has_data_configuration_revision_and_scores(run: Path) -> None:
    out = export_tiny(run, run.parent / "out", scores={"vqa": {"heldout": 0.8125}, "questions": 300})
    text = (out / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "visual-question-answering"
    for fact in ("| vqa / heldout | 0.8125 |", "| questions | 300 |", "abc123", "questions.json", "task: vqa"):
        assert fact in body
    assert str(run.parent) not in text, "an export must not name paths of the machine"


@pytest.mark.parametrize(
    ("description", "synthetic"), [("dimvl synthetic scenes", True), ("VQA v2.0 train2014", False)]
)
def test_the_model_card_names_synthetic_data_and_only_that(
    tmp_path: Path, trained: TrainedModel, detector: Detector, description: str, synthetic: bool
) -> None:
    detector.save(tmp_path / "detector")
    run = write_run(tmp_path / "runs" / "run", trained, description=description)
    text = (export_tiny(run, tmp_path / "out") / "README.md").read_text()
    assert ("synthetic" in text) is synthetic
    assert description in text


def test_a_checkpoint_with_a_flipped_bit_is_not_exported(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000003" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        export_tiny(run, run.parent / "out")


def test_the_model_arguments_are_plain_json(run: Path, trained: TrainedModel) -> None:
    arguments = json.loads((export_tiny(run, run.parent / "out") / "config.json").read_text())
    assert DimvlModel(**arguments).state_dict().keys() == trained.model.state_dict().keys()
