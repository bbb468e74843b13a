import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open

import dimvl.export
from dimvl import trained_model
from dimvl.data.prefixes import make_prefix
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.export import FILES, check_export, export
from dimvl.files import weights
from dimvl.model import convert
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.scenes import Detector
from dimvl.tasks import abilities_of
from dimvl.tasks.answering.prediction import answer_probabilities
from dimvl.tasks.captioning import prediction as captioning
from dimvl.trained_model import TrainedModel, load_model
from tests.cli.calls import call
from tests.exports import ANSWERS, all_abilities, make_detector, make_trained, write_run
from tests.factories import make_regions
from tests.tiny_runs import make_data


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector()


@pytest.fixture(scope="module")
def trained(detector: Detector) -> TrainedModel:
    return make_trained(all_abilities(detector.extractor, concepts="both"))


@pytest.fixture
def run(tmp_path: Path, trained: TrainedModel, detector: Detector) -> Path:
    detector.save(tmp_path / "detector")
    return write_run(tmp_path / "runs" / "secret-place", trained)


def export_tiny(run: Path, out: Path, **changes: object) -> Path:
    return export(run, out, **{"where": run.parents[1] / "detector", **changes})  # type: ignore[arg-type]


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


def test_an_export_of_version_0_1_has_its_tags_and_no_words_in_regions(run: Path, trained: TrainedModel) -> None:
    folders = [write_run(run.parent / name, make_trained(all_abilities(trained.processor.extractor))) for name in "ab"]
    for budget, folder in zip((12, 0), folders, strict=True):
        plain = load_model(folder)
        out = export_tiny(folder, folder.parent / f"out-{budget}")
        values = json.loads((out / "processor.json").read_text())
        for name in ("concepts", "concept_tokens", "concept_score"):
            del values[name]
        (out / "processor.json").write_text(json.dumps({**values, "tag_tokens": budget, "tag_score": 0.3}))
        old = load_model(out, check=False)
        assert (old.processor.concepts, old.processor.text_start) == ("text" if budget else "none", budget + 2)
        assert torch.equal(probabilities(old), probabilities(plain)) == (budget > 0)


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
    with pytest.raises(UserError, match=r"is not the extractor tiny .* give what made its regions as --where"):
        export_tiny(run, run.parent / "out", where=run.parent / "other")
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


def test_an_older_export_is_replaced_and_what_others_put_beside_it_stays(run: Path) -> None:
    out = export_tiny(run, run.parent / "out", scores={"vqa": 0.25})
    (out / ".git").mkdir()
    for name in (".git/HEAD", "notes.txt", "detector/notes.txt"):
        (out / name).write_text("of the user")
    export_tiny(run, out, scores={"vqa": 0.75}, where="none")
    assert all((out / name).read_text() == "of the user" for name in (".git/HEAD", "notes.txt", "detector/notes.txt"))
    assert "0.25" not in (out / "README.md").read_text() and "0.75" in (out / "README.md").read_text()
    assert not (out / "detector" / "detector.safetensors").exists() and not list(out.glob("*.old*"))
    load_model(out)


def test_an_edited_model_card_opens_and_is_kept_under_another_name(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = export_tiny(run, run.parent / "out")
    (out / "README.md").write_text("edited")
    load_model(out)
    for number in (1, 2):
        export_tiny(run, out, scores={"vqa": number})
        assert (out / "README.old1.md").read_text() == "edited" and not (out / "README.old2.md").exists()
    assert "was edited since it was exported and is now README.old1.md" in caplog.text


def test_an_export_is_written_into_an_empty_clone_and_into_the_folder_behind_a_link(run: Path) -> None:
    clone, link = run.parent / "clone", run.parent / "link"
    (clone / ".git").mkdir(parents=True)
    link.symlink_to("clone")
    for _ in range(2):
        assert export_tiny(run, link) == link and link.is_symlink()
        check_export(clone)
    assert {path.name for path in clone.iterdir()} >= {".git", "model.safetensors", "checksums.json"}
    dangling = run.parent / "dangling"
    dangling.symlink_to("later")
    export_tiny(run, dangling)
    assert dangling.is_symlink()
    check_export(run.parent / "later")


def test_an_export_writes_through_no_link_inside_its_folder(run: Path) -> None:
    out = export_tiny(run, run.parent / "out")
    elsewhere = run.parent / "elsewhere"
    (out / "detector").rename(elsewhere)
    (out / "detector").symlink_to(elsewhere)
    (out / "config.json").rename(run.parent / "config.json")
    (out / "config.json").symlink_to(run.parent / "config.json")
    before = state(elsewhere), (run.parent / "config.json").read_bytes()
    with pytest.raises(UserError, match="detector is in the way of the export; move it"):
        export_tiny(run, out)
    (out / "detector").unlink()
    export_tiny(run, out, where="none")
    assert (state(elsewhere), (run.parent / "config.json").read_bytes()) == before
    assert not (out / "config.json").is_symlink()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_mixture_of_two_exports_is_never_opened_and_exporting_again_completes_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, trained: TrainedModel, sealed: bool
) -> None:
    old = export_tiny(run, run.parent / "old", where="none")
    if not sealed:
        (old / "checksums.json").unlink()
    write_run(run, make_trained(trained.processor, seed=9), step=7)
    new = state(export_tiny(run, run.parent / "new", where="none"))
    moves, refused, real = 0, 0, os.replace

    def own(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in state(folder).items() if ".old" not in name}

    for cut_off in itertools.count(1):
        out = shutil.copytree(old, run.parent / f"out{cut_off}")

        def replace(source: Path, target: Path, out: Path = out, cut_off: int = cut_off) -> None:
            nonlocal moves
            moves += Path(source).parent.name == ".new-export" and not Path(source).name.startswith(".")
            if moves == cut_off:
                raise Killed
            real(source, target)

        moves = 0
        monkeypatch.setattr(os, "replace", replace)
        with contextlib.suppress(Killed):
            export_tiny(run, out, where="none")
        monkeypatch.setattr(os, "replace", real)
        if moves < cut_off:
            break
        if own(out) == new:
            load_model(out)
        elif cut_off == 1:
            assert state(out) == state(old)
        else:
            refused += 1
            with pytest.raises(UserError, match=r"damaged: it does not match its checksum"):
                load_model(out)
        export_tiny(run, out, where="none")
        assert own(out) == new
    assert cut_off > 7 and refused > 2


class Killed(Exception):  # noqa: N818 - stands for the end of the process
    pass


@pytest.mark.parametrize("file", ["model.safetensors", "detector.safetensors"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_older_export_unchanged(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, file: str
) -> None:
    out = export_tiny(run, run.parent / "out")
    before, real = state(out), weights.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if file in path.name:
            raise error
        real(tensors, path)

    monkeypatch.setattr(weights, "save_file", full)
    for folder in (out, run.parent / "another"):
        with pytest.raises(UserError, match=rf"cannot write \S*/{file}: .*No space left on device.*; free space"):
            export_tiny(run, folder)
    assert state(out) == before
    assert sorted(path.name for path in run.parent.iterdir()) == ["out", run.name], "no half-written folder stays"


# --- damage


def test_a_flipped_bit_in_any_file_of_an_export_is_an_error_that_names_it(run: Path) -> None:
    out = export_tiny(run, run.parent / "out")
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "README.md"]
    assert len(files) == 10
    for path in files:
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(UserError, match=f"{path}.*restore it from a copy"):
                load_model(out)
        path.write_bytes(content)
    load_model(out)


def test_an_export_without_checksums_opens_with_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = export_tiny(run, run.parent / "out")
    assert not caplog.text
    load_model(out)
    (out / "checksums.json").unlink()
    assert not caplog.text
    load_model(out)
    assert "out has no checksums.json, as before version 0.2: damage to its files cannot be noticed" in caplog.text


def test_an_export_that_is_replaced_while_it_is_read_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export_tiny(run, run.parent / "out")
    real = trained_model.load_trained

    def slow(*files: Path) -> DimvlModel:
        export_tiny(run, out, where="none")
        monkeypatch.undo()
        return real(*files)

    monkeypatch.setattr(trained_model, "load_trained", slow)
    monkeypatch.setattr(dimvl.export, "load_model", lambda run: make_trained(Processor.load(run)))
    with pytest.raises(UserError, match="was overwritten while it was being read; open it again"):
        load_model(out)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": 6}, r"answer_head\.outer\.weight is \(5, 32\) in the file and \(6, 32\) in the model"),
        ({"answers": 0}, r"answer_head\.\S+ is .* in the file and missing in the model"),
        ({"classes": 3}, r"object_head\.\S+ is missing in the file"),
        ({"match_head": False}, r"match_head\.\S+ is .* in the file and missing in the model"),
        ({"times": True}, r"regions\.time\.weight is missing in the file"),
        ({"layers": 3}, "has 3 layers but .* has 2"),
        ({"layers": 10**6}, "layers is 1000000"),
        ({"width": 24_000}, r"is \(16,?.*\) in the file and \(24000,?.*\) in the model"),
        ({"width": 17}, "width 17 is not a multiple of heads 2"),
        ({"width": -16}, "width is -16"),
        ({"heads": 0}, "heads is 0"),
        ({"vocabulary": "many"}, "vocabulary is 'many'"),
        ({"feature_width": None}, "feature_width is None"),
        ({"split": ["qkv", "all"]}, r"split \['all'\] is unknown"),
        ({"depth": 2}, "depth is 2: extra inputs"),
        ({"answers": True}, "does not describe a model"),
    ],
)
def test_a_model_that_the_weights_are_not_of_is_an_error_before_it_is_built(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], says: str
) -> None:
    out = export_tiny(run, run.parent / "out")
    arguments = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**arguments, **change}))
    built = []

    def build(**values: object) -> DimvlModel:
        built.append(torch.empty(0).device.type)
        return DimvlModel(**values)  # type: ignore[arg-type]

    monkeypatch.setattr(convert, "DimvlModel", build)
    with pytest.raises(UserError, match=f"{out}.*{says}.*; restore it from a copy of the folder"):
        load_model(out, check=False)
    assert built in ([], ["meta"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": [*ANSWERS, "3"]}, "have 6 answers but the model has 5"),
        ({"answers": list(ANSWERS[1:])}, "have 4 answers but the model has 5"),
        ({"max_images": 5}, "have 5 images but the model has 4"),
        ({"text_tokens": 400}, r"have \d+ token positions but the model has"),
        ({"times": True}, "have True times but the model has False"),
        ({"concepts": "text"}, "have False words in regions but the model has True"),
        ({"concepts": "everywhere"}, "concepts is 'everywhere'"),
        ({"max_images": 0}, "max_images is 0: input should be"),
        ({"concept_score": "high"}, "concept_score is 'high'"),
        ({"answers": None}, "answers is None"),
        ({"extractor": {}}, r"extractor\.name: field required"),
        ({"variant": "both"}, "variant is 'both'"),
    ],
)
def test_a_processor_that_does_not_fit_its_model_is_an_error(run: Path, change: dict[str, object], says: str) -> None:
    out = export_tiny(run, run.parent / "out")
    values = json.loads((out / "processor.json").read_text())
    (out / "processor.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=f"{says}.*; restore it from a copy of the folder"):
        load_model(out, check=False)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(run: Path) -> None:
    out = export_tiny(run, run.parent / "out")
    values = json.loads((out / "tokenizer.json").read_text())
    values["model"]["vocab"]["zebra"] = len(values["model"]["vocab"])
    (out / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="tokens but the model has"):
        load_model(out, check=False)


def test_predictions_that_are_not_finite_are_errors(tmp_path: Path, trained: TrainedModel) -> None:
    (tmp_path / "rules.yaml").write_text("statements: [{questions: ['is the {what}?'], statement: 'a {what}'}]")
    damaged = make_trained(trained.processor)
    with torch.no_grad():
        damaged.model.encoder.layers[0].ffn.language.outer.bias[0] = float("nan")
    prefix = make_prefix(make_regions(1), trained.processor.tags)
    for ability in abilities_of(trained.processor).values():
        texts = ["is the star red"]
        options = {"statements": tmp_path / "rules.yaml", "candidates": ["a star", "red"]}
        words = ability.prepare(damaged, texts, **options) if ability.takes_text else None
        with pytest.raises(UserError, match="predictions are not finite"):
            ability.apply(damaged, [prefix], words)


def test_a_folder_that_cannot_be_read_is_one_sentence_and_modes_follow_the_umask(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = os.umask(0o027)
    try:
        out = export_tiny(run, run.parent / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    assert modes.pop("detector") == 0o750 and set(modes.values()) == {0o640} and len(modes) == 11
    for name in ("model.safetensors", "processor.json", "trained_on.npy", "tokenizer.json", "config.json"):
        (out / name).chmod(0)
        with as_another_user(out), pytest.raises(UserError, match=f"{name} cannot be read .Permission denied"):
            load_model(out, check=False)
        (out / name).chmod(0o644)
    parent = out.parent
    for mode in (0o700, 0o744):
        with as_another_user(parent):
            os.seteuid(0)
            out.chmod(mode)
            os.seteuid(65534)
            for read in (load_model, check_export):
                with pytest.raises(UserError, match=r"out cannot be read \(Permission denied\); check the path"):
                    read(out)


@contextlib.contextmanager
def as_another_user(folder: Path) -> Iterator[None]:
    """Give up root's right to read any file; folders on the way to `folder` may be entered."""
    if os.geteuid():
        yield
        return
    for parent in (folder, *folder.parents):
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


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


def test_names_descriptions_and_scores_are_escaped_in_the_model_card(
    tmp_path: Path, trained: TrainedModel, detector: Detector
) -> None:
    detector.save(tmp_path / "detector")
    hostile = "<script>alert(1)</script> [x](javascript:alert(2)) a|b `c` \x1b[2J\n# Heading"
    run = write_run(tmp_path / "runs" / "run", trained, description=hostile)
    described = json.loads((run / "run.json").read_text())
    described["config"] |= {"captions": "x\n```\n<img src=y>\n", "initial": "runs/`a`<b>|"}
    described["data"]["questions"]["file"] = "`q`|\n.json"
    (run / "run.json").write_text(json.dumps(described))
    text = (export_tiny(run, tmp_path / "out", scores={"a|<b>": "c\n| d", "e": {"`f": 1.0}}) / "README.md").read_text()
    before, fenced, after = re.split("^````(?:yaml)?$", text, flags=re.MULTILINE)
    outside = before + after
    prose = re.sub("(`+).*?\\1", "", outside)
    assert "<img" in fenced and not any(character in prose for character in ("<", ">", "\x1b"))
    assert r"\[x\](javascript:alert(2)) a\|b \`c\` \\x1b\[2J # Heading, SHA" in outside
    assert r"| a\|&lt;b&gt; | c \| d |" in outside and r"| e / \`f | 1.0000 |" in outside
    assert "- questions: `` `q`| .json ``, &lt;script" in outside
    assert "- started from: the model `` `a`<b>| ``" in outside
    assert [line for line in outside.splitlines() if line.startswith("#")][1:] == [
        "## Data",
        "## Scores",
        "## Configuration",
    ]


@pytest.mark.parametrize("real", [None, "questions", "validation questions", "start"])
def test_a_model_knows_synthetic_scenes_only_if_no_training_image_was_real(run: Path, real: str | None) -> None:
    described = json.loads((run / "run.json").read_text())
    entry = described["data"]["questions"]
    described["data"] |= {"validation questions": entry, "annotations": entry}
    described["start"] = {"name": "pretrain", "sha256": "0" * 64, "data": {"captions": entry}}
    other = {**entry, "synthetic": False, "description": "photographs"}
    if real == "start":
        described["start"]["data"]["captions"] = other
    elif real:
        described["data"][real] = other
    (run / "run.json").write_text(json.dumps(described))
    out = export_tiny(run, run.parent / "out")
    only = real in (None, "validation questions")
    assert load_model(run).synthetic is load_model(out).synthetic is only
    card = (out / "README.md").read_text()
    assert ("knows synthetic scenes only" in card) is ("- synthetic-data" in card) is only


def test_the_command_in_the_card_of_an_export_without_a_detector_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data")
    monkeypatch.setattr(captioning, "caption_scores", Mock(side_effect=UserError("no Java")))
    for task in ("vqa", "caption", "pretrain"):
        run = write_run(tmp_path / task / "run", make_trained(all_abilities(task=task)))
        out = export_tiny(run, tmp_path / task / "out", where="none")
        (command,) = re.findall("^dimvl evaluate .*", (out / "README.md").read_text(), re.MULTILINE)
        given = {"FOLDER": out, "STORE": data.regions, "QUESTIONS": data.questions, "CAPTIONS": data.captions}
        words = [str(given.get(word, word)) for word in re.split("[ =]", command)[1:]]
        words = " ".join(words).replace(f"questions {data.questions}", f"questions={data.questions}")
        words = words.replace(f"captions {data.captions}", f"captions={data.captions}").split()
        result = call(monkeypatch, capfd, *words)
        assert result.code == 0, result.err
        assert (out / "evaluation" / "predictions.json").exists()
        load_model(out)


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


def test_parts_that_have_moved_since_extraction_are_asked_for_by_their_options(tmp_path: Path) -> None:
    recipe = {"where": "grid", "features": str(tmp_path / "moved"), "names_by": str(tmp_path / "moved")}
    own = replace(make_detector().extractor, recipe=recipe)
    with pytest.raises(UserError, match=r"moved, which .* does not exist; give --features, --names-by again"):
        dimvl.export._same_extractor(own, {})
