"""What adapters cost: operations against torch's own counter, kept activations, trained weights in a plan."""

import pytest

from dimvl.adapters.adding import add_adapter
from dimvl.config import AdapterConfig
from dimvl.model.flops import Flops, flops_by_part
from dimvl.model.work import Work
from dimvl.planning.cluster import Cluster
from dimvl.planning.memory import Numbers, saved_bytes
from dimvl.planning.plan import make_plan
from tests.adapters.test_adapters import LORA
from tests.model.test_flops import compare, counted
from tests.planning.runs import build
from tests.planning.test_memory import kept_by_autograd
from tests.tiny_runs import make_config, make_data

KINDS = [LORA, *(pytest.param(one, id=next(iter(one))) for one in ({"prompt": 3}, {"layers": 1}, {"head": True}))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 24, empty=3)


def adapted(data, output, adapter, name="caption", **changes):
    task, batch = build(data, output, name, **changes)
    add_adapter(task.model, AdapterConfig(**adapter))
    return task, batch


@pytest.mark.parametrize("adapter", KINDS)
def test_counted_operations_equal_torchs_count(data, tmp_path, adapter):
    compare(*adapted(data, tmp_path, adapter))


def test_the_learned_keys_of_a_prefix_are_counted_up_to_padding(data, tmp_path):
    task, batch = adapted(data, tmp_path, {"prefix": {"length": 40}})
    expected = sum(flops_by_part(task.model, Work.of(batch, padded=True)).values(), Flops())
    found = counted(task, batch)
    assert found == pytest.approx((expected.forward, expected.backward), rel=0.05)
    task.model.encoder.prefix = None
    assert sum(flops_by_part(task.model, Work.of(batch, padded=True)).values(), Flops()).forward < 0.8 * found[0]


@pytest.mark.parametrize("arithmetic", ["fp32", "autocast"])
@pytest.mark.parametrize("adapter", [{"layers": 1}, {"layers": 2}, {"head": True}])
def test_no_activations_or_casts_are_kept_below_the_lowest_trained_weight(data, tmp_path, adapter, arithmetic):
    model = {"layers": 3, "width": 64, "inner_width": 256, "heads": 4}
    task, batch = adapted(data, tmp_path, adapter, "vqa", model=model)
    numbers = Numbers(arithmetic=arithmetic, gpu=False, dropout=False)
    planned = sum(saved_bytes(task.model, Work.of(batch, padded=True), numbers).values())
    kept = kept_by_autograd(task, batch, arithmetic == "autocast")
    assert planned == pytest.approx(kept, rel=0.1)  # the lowest block keeps a little less


@pytest.mark.parametrize("adapter", [LORA, {"prefix": {"length": 3}}, {"prefix": {"length": 3, "hidden": 5}}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_counts_what_is_trained_and_no_optimiser_state_for_the_rest(data, tmp_path, adapter, precision):
    training = {"precision": precision}
    adapter = adapter | {"head": False}
    config = make_config(data, tmp_path, "caption", initial=tmp_path, adapter=adapter, training=training)
    plan = make_plan(config, Cluster(gpus=1, gpu_memory=80, peak=100, utilisation=0.4))
    parameters = sum(plan.parameters.values())
    assert 0 < plan.trained < parameters / 3
    for memory in plan.memory[:2]:
        assert memory.weights == 4 * parameters and memory.gradients == 4 * plan.trained
        assert memory.optimiser == 8 * plan.trained
