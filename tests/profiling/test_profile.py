"""Profiles of real steps: parts sum to the whole, time counts for the right part, and the run is left unchanged."""

import io
import json
import time
from dataclasses import fields

import pytest
import torch
from rich.console import Console

from dimvl.errors import UserError
from dimvl.model.flops import total_flops
from dimvl.model.heads import HEADS
from dimvl.model.work import Work
from dimvl.profiling import profile, scopes
from dimvl.profiling.measure import Part, Profile, _MarkedRun
from dimvl.profiling.table import table
from dimvl.training.run import run_training
from tests.cli.calls import call
from tests.tiny_runs import make_config, make_data

pytestmark = pytest.mark.filterwarnings("ignore:.*profiler.*")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 12, empty=3)


class Slow(torch.autograd.Function):
    """Sleeps in both passes."""

    @staticmethod
    def forward(context, rows):
        time.sleep(0.03)
        return rows.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(0.06)
        return gradient


def parts_of(found):
    return {part.name: part for part in found.parts}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("pretrain", {"training": {"rows_per_micro_batch": 80}}),
        ("pretrain", {"training": {"checkpoint_activations": True, "precision": "bf16"}}),
        ("pretrain", {"training": {"muon_rate": 0.01, "workers": 1}, "model": {"split": ["qkv", "ffn"]}}),
        ("vqa", {}),
        ("caption", {}),
    ],
)
def test_the_parts_sum_to_the_time_of_the_steps(data, tmp_path, task, changes):
    config = make_config(data, tmp_path / "run", task, **changes)
    found = profile(config, tmp_path, steps=3, warmup=1)
    # Only the loop and the start of the profiler run between steps.
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.seconds, rel=0.05)
    names = [part.name for part in found.parts]
    assert names == [name for name in scopes.parts() if name in names]
    expected = {*scopes.parts()} - {*(entry.label for entry in HEADS.values()), scopes.COMPILED}
    assert expected <= {*names}
    parts = parts_of(found)
    for name in (scopes.EMBEDDINGS, scopes.QKV, scopes.ATTENTION, scopes.OUT, scopes.FFN, scopes.NORMS):
        assert parts[name].forward > 0 and parts[name].backward > 0, name
    assert parts[scopes.BACKWARD].backward == 0, "every node of the backward pass belongs to a part"
    assert parts[scopes.OPTIMISER].backward == parts[scopes.DATA].backward == 0


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (lambda model: model.word_head.transform.dense, "head: words"),
        (lambda model: model.encoder.layers[0].ffn.language.inner, scopes.FFN),
        (lambda model: model.encoder.layers[0].qkv.vision, scopes.QKV),
        (lambda model: model.encoder.layers[0].out.language, scopes.OUT),
        (lambda model: model.encoder.layers[0].ffn_norm.language, scopes.NORMS),
        (lambda model: model.regions.norm, scopes.EMBEDDINGS),
    ],
)
def test_time_counts_for_the_part_and_the_pass_that_spend_it(data, tmp_path, monkeypatch, place, part):
    real = scopes.mark

    def with_slow_part(task, compiled):
        module = place(task.model)
        forward = module.forward
        module.forward = lambda rows: Slow.apply(forward(rows))
        real(task, compiled)

    monkeypatch.setattr("dimvl.profiling.measure.mark", with_slow_part)
    config = make_config(data, tmp_path / "run", training={"rows_per_micro_batch": 200})
    found = profile(config, tmp_path, steps=2, warmup=1)
    slow = parts_of(found)[part]
    # Without the pause both are well below a millisecond; that no time counts twice is the test above.
    assert slow.forward > 0.029 and slow.backward > 0.059


def test_slow_data_counts_as_data_wait(data, tmp_path, monkeypatch):
    from dimvl.data.sampler import TrainingSteps

    real = TrainingSteps.__getitem__

    def slow(self, step):
        time.sleep(0.05)
        return real(self, step)

    monkeypatch.setattr(TrainingSteps, "__getitem__", slow)
    found = profile(make_config(data, tmp_path / "run"), tmp_path, steps=2, warmup=1)
    waiting = parts_of(found)[scopes.DATA]
    assert waiting.roof == "data" and waiting.forward >= 0.05
    assert found.data_wait == pytest.approx(waiting.forward, rel=0.05)
    assert found.processor_seconds < found.seconds - 0.05, "a sleeping process uses no CPU time"


@pytest.mark.parametrize("recompute", [False, True])
def test_the_operations_of_the_parts_are_those_of_the_batches(data, tmp_path, recompute):
    config = make_config(data, tmp_path / "run", training={"checkpoint_activations": recompute})
    found = profile(config, tmp_path, steps=3, warmup=1)
    again = _MarkedRun(config.model_copy(update={"output": tmp_path / "again"}), 4, lambda done, total: None)
    again.train()
    batches = [batch for _ in range(3) for batch in again.train()]
    model = again.engine.task.model
    assert found.rows == sum(batch.layout.num_rows for batch in batches) / 3
    expected = sum(total_flops(model, Work.of(batch, padded=False)) for batch in batches) / 3
    assert found.flops == pytest.approx(expected)
    summed = sum(part.flops for part in found.parts)
    assert summed > 1.2 * expected if recompute else summed == pytest.approx(expected)
    assert found.utilisation == found.flops / found.seconds / found.peak


def test_products_are_bound_by_compute_or_memory_depending_on_the_device(data, tmp_path, monkeypatch):
    monkeypatch.setattr("dimvl.profiling.measure.matmul_rate", lambda device, precision: 1e11)
    config = make_config(data, tmp_path / "run", model={"width": 64, "inner_width": 512})
    for copied, roof in ((1e12, "compute"), (1e6, "memory")):
        monkeypatch.setattr("dimvl.profiling.measure.copy_rate", lambda device, copied=copied: copied)
        parts = parts_of(profile(config, tmp_path, steps=1, warmup=1))
        assert {parts[name].roof for name in (scopes.QKV, scopes.FFN, scopes.OUT)} == {roof}
        assert parts[scopes.NORMS].roof == parts[scopes.OPTIMISER].roof == "memory"


def test_the_bytes_of_a_product_depend_on_its_precision(data, tmp_path, monkeypatch):
    monkeypatch.setattr("dimvl.profiling.measure.matmul_rate", lambda device, precision: 12.0)
    monkeypatch.setattr("dimvl.profiling.measure.copy_rate", lambda device: 1.0)  # 7 to 10 operations a byte in fp32
    for precision, roof in (("fp32", "memory"), ("bf16", "compute")):
        config = make_config(data, tmp_path / "run", training={"precision": precision}, model={"width": 64})
        assert parts_of(profile(config, tmp_path, steps=1, warmup=1))[scopes.QKV].roof == roof


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at what it compiles
def test_in_a_compiled_run_all_that_follows_attention_is_one_part(data, tmp_path, monkeypatch):
    from dimvl.model.encoder import Encoder

    real = Encoder.compile_blocks
    monkeypatch.setattr(Encoder, "compile_blocks", lambda self: real(self, "aot_eager"))
    config = make_config(data, tmp_path / "run", training={"compile": True})
    found = profile(config, tmp_path, steps=2, warmup=2)
    compiled = parts_of(found)[scopes.COMPILED]
    assert compiled.forward > 0 and compiled.backward > 0 and compiled.flops > 0
    assert not {scopes.OUT, scopes.FFN, scopes.NORMS} & parts_of(found).keys()


# --- the command


def test_a_row_of_the_table_shows_both_passes_and_their_common_rate():
    seen = {"forward": 0.1, "backward": 0.3}
    parts = (
        Part(name="QKV", **seen, flops=2e9, roof="compute"),
        Part(name="norms", forward=0.1, backward=0, flops=0, roof=""),
    )
    figures = dict.fromkeys((field.name for field in fields(Profile)), 1.0) | {"parts": parts, "peak": 1e10}
    console = Console(file=io.StringIO(), width=200)
    console.print(table(Profile(**figures)))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["QKV", "80.0%", "400.0", "100.0", "300.0", "2.0", "5", "50%", "compute"] in rows
    assert ["norms", "20.0%", "100.0", "100.0"] in rows and ["all", "100%", "500.0", "200.0", "300.0", "2.0"] in rows


@pytest.fixture
def config_file(data, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output: {tmp_path / 'run'}\nregions: {data.regions}\ncaptions: {data.captions}\n"
        "model: {layers: 1, width: 16, heads: 2, inner_width: 32}\n"
        "inputs: {max_regions: 10, concept_tokens: 8, text_tokens: 12, vocabulary: 100}\n"
        "training: {steps: 3, rows_per_step: 200, rows_per_micro_batch: 80}\n"
    )
    return path


def test_the_command_prints_the_parts_and_writes_the_trace_but_no_run(monkeypatch, capsys, config_file, tmp_path):
    code, out, err = call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path / "profile", "--steps", 2)
    assert code == 0, err
    for part in ("QKV", "FFN products", "optimiser", "bound by", "of peak", "GFLOP/s", "2 steps of"):
        assert part in out, part
    assert "trace.json: open it in https://ui.perfetto.dev" in err
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "dimvl: QKV" for event in trace["traceEvents"])
    assert not (tmp_path / "run").exists()
    values = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert values["steps"] == 2 and {part["name"] for part in values["parts"]} >= {"QKV", "attention"}


def test_json_output_equals_the_file_written(monkeypatch, capsys, config_file, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path / "profile", "--json")
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "profile" / "profile.json").read_text())


def test_an_existing_run_is_left_unchanged(monkeypatch, capsys, data, config_file, tmp_path):
    from dimvl.tasks import load_config

    run = run_training(load_config(config_file))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path / "profile", "training.steps=1")[0] == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["deepspeed={stage: 1}"], "uses DeepSpeed, which is not profiled; add deepspeed=null"),
        (["training.step=3"], "unknown key 'training.step'"),
        (["captions=gone.json"], "gone.json does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, capsys, config_file, tmp_path, overrides, sentence):
    code, out, err = call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path / "profile", *overrides)
    assert code == 2 and not out and sentence in err and not (tmp_path / "profile").exists()


def test_a_configuration_is_profiled_once_deepspeed_is_removed(monkeypatch, capsys, config_file, tmp_path):
    with config_file.open("a") as file:
        file.write("deepspeed: {stage: 2}\n")
    assert call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path, "--steps", 1)[0] == 2
    assert call(monkeypatch, capsys, "profile", config_file, "--out", tmp_path, "--steps", 1, "deepspeed=null")[0] == 0


def test_several_processes_and_self_critical_training_are_refused(monkeypatch, data, tmp_path):
    config = make_config(
        data, tmp_path, "caption", initial=tmp_path, self_critical={"samples": 2}, model={"dropout": 0}
    )
    with pytest.raises(UserError, match="self_critical draws captions in every step"):
        profile(config, tmp_path, steps=1, warmup=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="only one process can be profiled; start it without a launcher"):
        profile(make_config(data, tmp_path), tmp_path, steps=1, warmup=1)
