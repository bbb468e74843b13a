"""Plans equal real runs, and figures counted elsewhere."""

import json
import os
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.model.flops import Flops, flops_by_part
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work, example_work
from dimvl.planning import Cluster, DataOverrides, estimate_cpu, make_plan
from dimvl.planning.data import gather
from dimvl.planning.plan import average_example, average_step, meta_model, parameters_by_part
from dimvl.tasks import load_config
from dimvl.tasks.costs import DataFacts, TextFacts
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.trained_model import load_model
from dimvl.training.optimiser import orthogonalise
from dimvl.training.run import run_training
from tests.cli.calls import call
from tests.planning.runs import SPLITS, all_batches
from tests.tiny_runs import make_config, make_data, make_several


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 40)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return make_several(make_data(tmp_path_factory.mktemp("several"), 40), 40, times=True)


# --- against real runs


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_a_planned_model_equals_that_of_the_run(data, tmp_path, task, split):
    inputs = {"concepts": "both" if split else "none"}
    config = make_config(data, tmp_path / "run", task, model={"split": split}, training={"steps": 1}, inputs=inputs)
    run = run_training(config)
    trained = load_model(run).model
    planned = meta_model(config, gather(config, DataOverrides()))
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert {n: p.shape for n, p in planned.named_parameters()} == {n: p.shape for n, p in trained.named_parameters()}
    assert sum(parameters_by_part(planned).values()) == sum(p.numel() for p in trained.parameters())


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption", "retrieve"])
def test_before_a_run_only_facts_about_its_texts_are_assumed(data, tmp_path, task):
    config = make_config(data, tmp_path / "run", task)
    before = gather(config, DataOverrides())
    assert all("tokeni" in sentence for sentence in before.assumed) and before.assumed
    run_training(config)
    after = gather(config, DataOverrides())
    assert not after.assumed
    same = ("regions", "feature_width", "classes", "class_columns", "attribute_columns", "max_positions")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    assert after.vocabulary == read_json(config.output / "config.json")["vocabulary"]


@pytest.mark.parametrize("images", ["data", "several"])
@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("pretrain", {"objectives": {"region_share": 0.5}}),
        ("pretrain", {"objectives": {"region_share": 0.5, "shared_prefix": True, "shares": {"matching": 2}}}),
        ("vqa", {}),
        ("vqa", {"shared_prefix": True}),
        ("caption", {}),
        ("caption", {"seq2seq": {"captions": 3, "variant": "masked"}}),
        ("retrieve", {"contrastive": {"group": 4}, "captions_per_image": 2}),
    ],
)
def test_an_average_example_is_the_mean_of_the_examples_of_an_epoch(request, tmp_path, images, task, changes):
    # Half of the regions are to be predicted, as rounding makes a small share of few regions larger. Texts of other
    # lengths than the mean round their number of masks otherwise, small batches have few examples of each objective,
    # and hidden regions have no tags.
    inputs = {"concepts": "both", "concept_dropout": 0.25, "max_images": 5, "times": images == "several"}
    if images == "several" and task == "vqa":
        changes = {"annotations": [], **changes}
    config = make_config(request.getfixturevalue(images), tmp_path / "run", task, **{"inputs": inputs, **changes})
    run_training(config)
    facts = gather(config, DataOverrides())
    batches, examples = all_batches(config, epochs=40 if task == "pretrain" else 4)
    real = sum((Work.of(batch, padded=False) for batch in batches), Work()) * (1 / examples)
    planned = average_example(config, facts)
    for name in ("vision", "language"):
        assert getattr(planned.work, name) == pytest.approx(getattr(real, name), rel=0.06), name
    assert planned.work.heads.keys() == real.heads.keys()
    for name, rows in real.heads.items():
        assert planned.work.heads[name] == pytest.approx(
            rows, rel=0.2 if name in ("word_head", "object_head") else 0.06
        )
    assert planned.work.attention.pairs == pytest.approx(real.attention.pairs, rel=0.15)
    prefixes = facts.images * facts.prefixes_per_image
    assert planned.per_prefix == pytest.approx(examples / len(batches) / prefixes)
    read = sum(len(batch.layout.num_regions) for batch in batches)
    assert planned.prefixes == pytest.approx(read / examples, rel=0.06)
    assert facts.images == 40 and (facts.images_per_prefix > 2) == (images == "several")


def test_a_planned_step_has_the_operations_of_real_steps(data, tmp_path):
    config = make_config(data, tmp_path / "run", training={"rows_per_step": 400})
    run_training(config)
    model = meta_model(config, gather(config, DataOverrides()))
    plan = make_plan(config, Cluster(gpus=1))
    works = [Work.of(batch, padded=False) for batch in all_batches(config, epochs=30, in_steps=True)[0]]
    real = sum(sum(flops_by_part(model, work).values(), Flops()).total for work in works) / len(works)
    # A step ends before its budget where the next example does not fit, half of one on average: 4% here.
    assert plan.flops_per_step == pytest.approx(real, rel=0.08) and plan.flops_per_step > real


# --- against figures counted elsewhere


def base_model(**changes):
    with torch.device("meta"):
        return DimvlModel(
            **{
                **dict(vocabulary=30_522, feature_width=2048, layers=12, width=768, heads=12, inner_width=3072),
                **dict(word_head=True, classes=1600),
                **changes,
            }
        )


def total(model, work):
    return sum(flops_by_part(model, work).values(), Flops()).total


@pytest.mark.parametrize(("regions", "tokens", "gflop"), [(100, 36, 73.4), (36, 20, 29.8), (40, 14, 28.7)])
def test_an_example_of_base_size_has_the_operations_counted_by_hand(regions, tokens, gflop):
    work = example_work(
        regions=regions,
        context=0,
        texts=1,
        text_rows=tokens,
        shared_prefix=False,
        word_head=0.15 * tokens,
        object_head=0.15 * regions,
    )
    assert total(base_model(), work) / 1e9 == pytest.approx(gflop, rel=0.003)  # the figures have three digits


@pytest.mark.parametrize(("regions", "words", "ratio"), [(100, 0.5, 3.3), (100, 1, 3.1), (40, 0.5, 2.4), (40, 1, 2.2)])
def test_five_captions_after_one_prefix_save_the_operations_counted_by_hand(regions, words, ratio):
    sizes = {"regions": regions, "context": 0, "text_rows": 14, "shared_prefix": True}
    together = example_work(**sizes, texts=5, word_head=5 * 14 * words)
    pairs = example_work(**sizes, texts=1, word_head=14 * words) * 5
    assert total(base_model(), pairs) / total(base_model(), together) == pytest.approx(ratio, abs=0.06)


# --- what follows from what


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "output: run\nregions: none\ncaptions: none.json\n"
        "model: {layers: 12, width: 768, heads: 12, inner_width: 3072}\n"
        "inputs: {vocabulary: 30522}\n"
        "training: {steps: 1000, rows_per_step: 65536, rows_per_micro_batch: 8192, precision: bf16}\n"
    )
    return path


def planned(path, *overrides, given=None, **cluster):
    return make_plan(load_config(path, overrides), Cluster(**{"gpus": 8, **cluster}), given)


def test_more_gpus_share_the_step_and_the_memory(config_file):
    one, eight = planned(config_file, gpus=1), planned(config_file)
    assert one.flops_per_step == eight.flops_per_step and one.seconds == pytest.approx(8 * eight.seconds)
    assert one.step.micro_batches == 8 and eight.step.micro_batches == 1
    assert one.step.micro_batch == eight.step.micro_batch
    assert [m.engine for m in one.memory] == ["torch", *["deepspeed"] * 4] and len(eight.memory) == 4
    three = eight.memory[3]
    assert three.weights == pytest.approx(2 * eight.trained / 8) and three.optimiser == pytest.approx(
        1.5 * eight.trained
    )


def test_the_lowest_stage_that_fits_is_reported(config_file):
    large = ("model.layers=48", "model.width=2048", "model.inner_width=8192", "model.heads=16")
    sizes = [memory.total / 1e9 for memory in planned(config_file, *large).memory]
    assert sizes == sorted(sizes, reverse=True)
    for stage in range(4):
        enough = sizes[stage] / 0.9 + 1e-6
        assert planned(config_file, *large, gpu_memory=enough).fitting.stage == stage
    assert planned(config_file, *large, gpu_memory=sizes[3]).fitting is None


def test_activation_checkpointing_keeps_less_and_computes_more(config_file):
    plain, again = planned(config_file), planned(config_file, "training.checkpoint_activations=true")
    assert again.memory[1].activations < 0.3 * plain.memory[1].activations
    assert again.flops_per_step == pytest.approx(plain.flops_per_step * 4 / 3, rel=0.02)  # heads run once


def test_offloaded_states_are_not_on_the_gpu(config_file):
    plan = planned(config_file, "deepspeed={stage: 3, offload_optimizer: true, offload_parameters: true}")
    assert plan.configured == 3 and plan.memory[0].optimiser > 0
    assert plan.memory[1].optimiser == 0 and plan.memory[1].weights > 0 and plan.memory[3].weights == 0


def test_the_bucket_of_the_configuration_is_counted(config_file):
    small = "deepspeed={stage: 2, options: {zero_optimization: {reduce_bucket_size: 1000000}}}"
    assert planned(config_file, small).memory[2].buffers == 2e6


def test_given_values_replace_assumed_ones(config_file):
    plain, given = planned(config_file), planned(config_file, given=DataOverrides(images=3_000_000, words=20, texts=5))
    assert plain.epochs is None and plain.store_bytes is None
    assert given.epochs == pytest.approx(1000 * given.step.examples / 3_000_000)
    assert given.store_bytes["float16"] == pytest.approx(3e6 * 36 * (2 * 2048 + 24), rel=0.01)
    assert given.step.examples < plain.step.examples and len(given.facts.assumed) == len(plain.facts.assumed) - 2


def test_a_frozen_part_has_no_gradients_and_no_optimiser_state(config_file):
    whole = planned(config_file)
    frozen = planned(config_file, "training.freeze.layers=6", "training.freeze.words=true")
    assert frozen.trained < whole.trained and frozen.flops_per_step < whole.flops_per_step
    assert frozen.memory[0].weights == whole.memory[0].weights
    assert frozen.memory[0].optimiser / whole.memory[0].optimiser == pytest.approx(frozen.trained / whole.trained)


def test_unusual_numbers_of_epochs_are_remarked_with_the_steps_of_one(config_file):
    few, many = (planned(config_file, given=DataOverrides(images=images)) for images in (100_000_000, 100))
    (little,), (much,) = few.remarks, many.remarks
    assert f"1,000 steps see {few.epochs:.0%} of 100,000,000 images" in little and "raise training.steps" in little
    assert f"1,000 steps see {many.epochs:,.0f} epochs of 100 images" in much and "lower training.steps" in much
    assert f"one epoch has {1000 / few.epochs:,.0f};" in little
    assert not planned(config_file, given=DataOverrides(images=100_000)).remarks and not planned(config_file).remarks


def test_the_time_on_a_cpu_follows_from_the_measured_time_of_a_block(config_file, monkeypatch):
    seen = []
    monkeypatch.setattr("dimvl.planning.cpu._seconds", lambda *arguments: seen.append(arguments) or 2.0)
    overrides = ("training.device=cpu", "training.precision=fp32")
    config, plan = load_config(config_file, overrides), planned(config_file, *overrides, gpus=1)
    estimate = estimate_cpu(config, plan)
    *_, number, vision, language = seen[0]
    assert vision == 36 and 1024 < number * (vision + language) <= 2048
    work = example_work(regions=vision, context=0, texts=1, text_rows=language, shared_prefix=False) * number
    block = {name: part.total for name, part in flops_by_part(base_model(layers=1, split=[]), work).items()}
    # Its input needs a gradient, as that of all blocks of a model.
    assert estimate.gflops == pytest.approx((block["encoder shared"] + block["attention scores"]) / 2 / 1e9)
    assert estimate.seconds == pytest.approx(plan.flops_per_step / estimate.gflops / 1e9)
    muon = estimate_cpu(load_config(config_file, ["training.muon_rate=0.001"]), plan)
    with FlopCounterMode(display=False) as counted:
        for matrix in base_model(layers=1).encoder.parameters():
            if matrix.ndim > 1:
                orthogonalise(matrix)
    more = (muon.seconds - estimate.seconds) * estimate.gflops * 1e9
    assert more == pytest.approx(12 * counted.get_total_flops(), rel=1e-3)
    assert estimate_cpu(load_config(config_file, ["model.inner_width=8192"]), plan) is None, "takes too long"


# --- the command


def test_the_command_tells_the_time_on_this_cpu_only_where_it_would_be_used(monkeypatch, capsys, config_file):
    monkeypatch.setattr("dimvl.planning.cpu._seconds", lambda *arguments: 1.0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = call(monkeypatch, capsys, "plan", config_file, "--images", 10).out
    assert "on this CPU instead: about " in out and " days" in out and f"(threads: {torch.get_num_threads()}" in out
    assert "on this CPU" not in call(monkeypatch, capsys, "plan", config_file, "--gpus", 8).out


def test_the_command_prints_what_fits_the_assumptions_and_the_formulae(monkeypatch, capsys, config_file):
    code, out, _ = call(monkeypatch, capsys, "plan", config_file, "--gpus", 8, "--images", 3000000)
    assert code == 0
    for part in ("parameters: 136.0 M", "ZeRO 3", "fits in 80 GB", "GB/s per GPU", "epochs of 3,000,000", "assumed:"):
        assert part in out, part
    assert "formulae:" in out and "none does not exist: 36 regions" in out


def test_json_output_has_the_numbers_of_the_plan(monkeypatch, capsys, config_file):
    code, out, _ = call(monkeypatch, capsys, "plan", config_file, "--gpus", 8, "--json", "training.rows_per_step=32768")
    values, plan = json.loads(out), planned(config_file, "training.rows_per_step=32768")
    assert code == 0 and values["flops_per_step"] == plan.flops_per_step
    assert [m["total"] for m in values["memory"]] == [m.total for m in plan.memory]
    assert values["fits"] == {"engine": "deepspeed", "stage": 0}


def test_planning_writes_nothing(monkeypatch, capsys, config_file):
    before = sorted(os.listdir(config_file.parent))
    monkeypatch.chdir(config_file.parent)
    assert call(monkeypatch, capsys, "plan", config_file)[0] == 0
    assert sorted(os.listdir(config_file.parent)) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--utilisation", 1.5], "--utilisation is 1.5; it must be above 0 and at most 1"),
        (["--gpu-memory", -1], "--gpu-memory is -1; it must be above 0"),
        (["training.rows_per_step=50"], "rows_per_step 50 is below the"),
        (["--gpus", 10_000_000], "fewer than --gpus 10000000, so some GPUs would be idle"),
        (["training.freeze.layers=13"], "training.freeze.layers is 13 but the model has 12"),
        (["training.row_per_step=50"], "unknown key 'training.row_per_step'"),
        (["deepspeed.options={gradient_clipping: 3}"], "gradient_clipping is 3, but it is set by training.clip (1.0)"),
        (
            ["deepspeed.options={zero_optimization: {reduce_bucket_size: many}}"],
            "reduce_bucket_size is 'many'; give a number, such as 500000000",
        ),
        (["deepspeed.options={zero_optimization: 3}"], "zero_optimization is 3, not a mapping; give its keys"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, capsys, config_file, arguments, sentence):
    code, out, err = call(monkeypatch, capsys, "plan", config_file, *arguments)
    assert code == 2 and not out and sentence in err and len(err.splitlines()) == 1


def test_self_critical_training_is_refused_by_name(data, tmp_path):
    config = make_config(
        data, tmp_path, "caption", initial=tmp_path, self_critical={"samples": 2}, model={"dropout": 0}
    )
    with pytest.raises(UserError, match="self_critical draws captions in every step"):
        make_plan(config, Cluster(gpus=1))


def test_a_group_of_more_images_than_there_are_is_refused_as_in_training(data, tmp_path):
    config = make_config(data, tmp_path / "run", "retrieve", contrastive={"group": 41})
    sentence = r"^contrastive\.group is 41 but only 40 images have captions; lower it$"
    with pytest.raises(UserError, match=sentence):
        make_plan(config, Cluster(gpus=1))
    with pytest.raises(UserError, match=sentence):
        run_training(config)


def test_a_damaged_store_is_an_error_and_not_assumed_away(data, tmp_path):
    copied = tmp_path / "regions"
    shutil.copytree(data.regions, copied)
    (copied / "manifest.json").write_text("{")
    config = make_config(data, tmp_path / "run", regions=copied)
    with pytest.raises(UserError, match="manifest"):
        make_plan(config, Cluster(gpus=1))


def test_a_planned_step_fills_the_row_budget_as_the_sampler_counts_it():
    config = PretrainConfig(output="o", regions="r", captions="c", training={"steps": 1, "rows_per_step": 10_000})
    example = average_example(config, DataFacts(regions=36.0, texts=TextFacts(12.0, 40.0, 12.0, 1.0, 1.0, 13.0)))
    step = average_step(config.training, example, ranks=4)
    assert step.examples * example.cost == 10_000 and example.cost > example.work.rows
    assert step.micro_batch.rows == pytest.approx(step.work.rows / 4)
