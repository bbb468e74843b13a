"""Utilisation: the operations of a step by torch's own counter, over what the device can do."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dimvl.cpu.linear import FLOP_FORMULAS
from dimvl.data.sampler import TrainingSteps
from dimvl.model.flops import total_flops
from dimvl.model.plan import plan_attention
from dimvl.model.work import Work, ragged_attention
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.training import loop, peak
from dimvl.training.build import build_task
from dimvl.training.engine import TorchEngine
from dimvl.training.ranks import SingleProcess
from dimvl.training.report import Meter
from dimvl.training.run import run_training
from tests.factories import make_layout
from tests.tiny_runs import make_config

CPU = torch.device("cpu")


def one_by_one(plan, query, key, value):
    """Attend sequence by sequence with two plain products each, without padding."""
    outputs = []
    for call in plan.calls:
        rows = zip(
            query[call.query_rows].split(call.query_lengths.tolist()),
            key[call.key_rows].split(call.key_lengths.tolist()),
            value[call.key_rows].split(call.key_lengths.tolist()),
            strict=True,
        )
        for parts in rows:
            q, k, v = (part.transpose(0, 1) for part in parts)
            scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
            if call.causal:
                hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(k.shape[1] - q.shape[1] + 1)
                scores = scores.masked_fill(hidden, float("-inf"))
            outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)[plan.query_order]


def engine_and_steps(config):
    store = RegionStore(config.regions)
    torch.manual_seed(0)
    task, source = build_task(config, store, task_of(config).read(config, store))
    settings = config.training
    budgets = {"rows_per_step": settings.rows_per_step, "rows_per_micro_batch": settings.rows_per_micro_batch}
    return TorchEngine(task, settings), TrainingSteps(source, task.shape, seed=0, steps=settings.steps, **budgets)


@pytest.mark.parametrize(
    ("task", "changes"),
    [("pretrain", {}), ("pretrain", {"objectives": {"shared_prefix": True}}), ("vqa", {}), ("caption", {})],
)
def test_counted_operations_of_a_step_equal_torchs_count(data, tmp_path, monkeypatch, task, changes):
    engine, steps = engine_and_steps(make_config(data, tmp_path, task, **changes))
    monkeypatch.setattr("dimvl.model.attention._padded", one_by_one)
    meter = Meter(SingleProcess(), lambda work: total_flops(engine.task.model, work))
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        for number in range(2):
            loop.optimise(engine, steps[number], 0, number)
    for number in range(2):
        meter.add(steps[number])
    assert meter.ideal_seconds(meter.work) == pytest.approx(counter.get_total_flops(), rel=1e-12)
    meter.rates()
    assert meter.ideal_seconds(meter.work) == 0, "the next report starts from zero"


@pytest.mark.parametrize("seed", range(20))
def test_attention_counted_from_lengths_equals_that_of_the_plan(seed):
    layout = make_layout(seed)
    calls, work = plan_attention(layout).calls, ragged_attention(layout)
    assert work.pairs == sum(np.dot(call.query_lengths, call.key_lengths) for call in calls)
    assert (work.queries, work.keys) == (
        sum(len(call.query_rows) for call in calls),
        sum(len(call.key_rows) for call in calls),
    )


def test_utilisation_is_operations_over_what_the_device_can_do_in_the_same_time(data, tmp_path, monkeypatch):
    reports, rate = [], 1e7  # slow enough that a tiny step is not 0%
    monkeypatch.setattr(loop, "matmul_rate", lambda device, precision: rate)
    config = make_config(data, tmp_path, training={"log_every": 3})
    started = time.perf_counter()
    run_training(config, reports.append)
    seconds = time.perf_counter() - started
    engine, steps = engine_and_steps(replace_output(config, tmp_path / "again"))
    batches = [batch for number in range(6) for batch in steps[number].micro_batches]
    flops = sum(total_flops(engine.task.model, Work.of(batch, padded=False)) for batch in batches)
    at_least = flops / rate / seconds  # the time of the run includes its start
    assert sum(report.utilisation for report in reports) / 2 > at_least > 0
    assert f"{reports[0].utilisation:.0%} of peak" in reports[0].line()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["utilisation"] for line in lines] == [report.utilisation for report in reports]


def replace_output(config, output):
    return config.model_copy(update={"output": output})


def test_utilisation_is_the_mean_over_ranks():
    class Two(SingleProcess):
        size = 2

        def sum(self, values):
            return values + np.array([0, 0, 0, 3.0])  # what the other rank has

    meter = Meter(Two(), lambda work: 1.0)
    meter.start = time.perf_counter() - 10
    assert meter.rates()["utilisation"] == pytest.approx((1 + 3) / 10 / 2, rel=1e-2)


def test_utilisation_that_is_not_counted_is_not_shown(data, tmp_path):
    run_training(make_config(data, tmp_path / "first", "caption", training={"steps": 1}))
    changes = {"initial": tmp_path / "first", "self_critical": {"samples": 2}, "model": {"dropout": 0}}
    reports = []
    run_training(make_config(data, tmp_path / "second", "caption", training={"steps": 1}, **changes), reports.append)
    assert reports[0].utilisation is None and "of peak" not in reports[0].line()
    assert "utilisation" not in (tmp_path / "second" / "log.jsonl").read_text()
    assert "of peak" in replace(reports[0], utilisation=0.5).line()


def test_measuring_the_device_leaves_the_random_state_alone():
    peak._matmul_rate.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rates = {precision: peak.matmul_rate(CPU, precision) for precision in ("fp32", "bf16")}
    assert torch.equal(torch.rand(1), expected)
    assert all(1e8 < rate < 1e15 for rate in rates.values())


def test_peaks_count_operations_in_the_precision_of_the_run_and_bytes_read_and_written(monkeypatch):
    multiplied, real = [], peak.product
    monkeypatch.setattr(peak, "product", lambda left, right: multiplied.append(left.dtype) or real(left, right))

    def half_a_second(run, device):
        run()
        return 0.5

    monkeypatch.setattr(peak, "_least_seconds", half_a_second)
    monkeypatch.setattr(peak, "SIDE", {"cpu": 4})
    monkeypatch.setattr(peak, "COPIED", {"cpu": 64})
    try:
        for measured in (peak._matmul_rate, peak._copy_rate):
            measured.cache_clear()
        rates = [peak.matmul_rate(CPU, precision) for precision in ("fp32", "bf16")]
        assert rates == [2 * 4**3 / 0.5] * 2 and multiplied == [torch.float32, torch.bfloat16]
        assert peak.copy_rate(CPU) == 2 * 64 / 0.5
    finally:
        for measured in (peak._matmul_rate, peak._copy_rate):
            measured.cache_clear()


def test_the_fastest_round_counts_and_the_first_is_ignored(monkeypatch):
    clock = iter([0.0, *(0.0, 0.001), *(0.001, 0.004), 0.004, *(0.004, 0.006), 0.006, *(0.006, 0.3), 0.3])
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(clock))
    assert peak._least_seconds(lambda: torch.zeros(1), CPU) == pytest.approx(0.002)
