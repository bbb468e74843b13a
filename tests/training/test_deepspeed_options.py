import re

import pytest

from dimvl.config import DeepSpeedConfig, TrainingConfig, validate
from dimvl.errors import UserError
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.training.deepspeed_options import check_known, deepspeed_options


def options(training=None, ranks=2, **config):
    return deepspeed_options(TrainingConfig(steps=1, **(training or {})), DeepSpeedConfig(**config), ranks)


def test_every_key_that_affects_results_is_set_whatever_the_defaults():
    written = options({"clip": 0.5}, stage=2)
    assert written["gradient_clipping"] == 0.5, "DeepSpeed clips at 1 without it"
    assert written["gradient_accumulation_steps"] == 1 and written["train_batch_size"] == 2
    assert written["communication_data_type"] == "fp32" and written["data_types"] == {"grad_accum_dtype": "fp32"}
    assert not written["prescale_gradients"] and written["gradient_predivide_factor"] == 1
    assert not (written["fp16"]["enabled"] or written["bf16"]["enabled"] or written["torch_autocast"]["enabled"])
    assert written["zero_optimization"]["stage"] == 2 and written["zero_optimization"]["overlap_comm"] is False
    assert written["zero_force_ds_cpu_optimizer"] is False, "DeepSpeed's own is compiled"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_has_fp32_masters_except_at_stage_0_where_it_is_autocast(stage):
    written = options({"precision": "bf16"}, stage=stage)
    assert written["bf16"]["enabled"] == (stage > 0) and written["torch_autocast"]["enabled"] == (stage == 0)
    assert written["bf16"]["check_grad_overflow"] and not written["bf16"]["bf16_master_weights_and_grads"]


def test_offloading_is_set_only_if_it_is_configured():
    everything = options(stage=3, offload_optimizer=True, offload_parameters=True)["zero_optimization"]
    assert everything["offload_optimizer"]["device"] == everything["offload_param"]["device"] == "cpu"
    assert not {"offload_optimizer", "offload_param"} & options(stage=3)["zero_optimization"].keys()
    assert not options(stage=3)["zero_optimization"]["ignore_unused_parameters"], "a weight without a gradient is a bug"


def test_the_users_keys_are_merged_and_may_repeat_what_is_already_set():
    given = {"zero_optimization": {"reduce_bucket_size": 1000, "stage": 2}, "gradient_clipping": 1.0}
    given |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "optimizer": None}
    merged = options({"precision": "bf16"}, stage=2, options=given)
    assert merged["bf16"] == options({"precision": "bf16"}, stage=2)["bf16"]
    assert merged["zero_optimization"]["reduce_bucket_size"] == 1000
    assert merged["zero_optimization"]["contiguous_gradients"] is True and merged["gradient_clipping"] == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"gradient_clipping": 0.1}, "gradient_clipping is 0.1, but it is set by training.clip (1.0); remove it"),
        ({"train_batch_size": 64}, "train_batch_size is 64, but it is set by training.rows_per_step"),
        ({"gradient_accumulation_steps": 4}, "but it is set by training.rows_per_micro_batch"),
        ({"fp16": {"enabled": True}}, "but it is set by training.precision"),
        ({"optimizer": {"type": "Adam"}}, "but it is set by training.learning_rate and related options"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, but it is set by deepspeed.stage (1)"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "but it is set by deepspeed.offload_optimizer",
        ),
        (
            {"zero_optimization": {"zero_hpz_partition_size": 3}},
            "but it is set by the number of ranks, all of which share each weight",
        ),
        ({"zero_optimization": 3}, "deepspeed.options.zero_optimization is 3, not a mapping; give its keys"),
        ({"checkpoint": {"load_universal": True}}, "but it is set by training.save_every and training.keep"),
        ({"gradient_clipping": None}, "gradient_clipping is None, but it is set by training.clip (1.0); remove it"),
        ({"bf16": {"enabled": True}}, "bf16 is {'enabled': True}, but it is set by training.precision"),
        ({"zero_optimization": {"cpu_offload": True}}, "but it is set by deepspeed.offload_optimizer"),
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "but it is set by the order of weights, by which each finds its fp32 master",
        ),
        ({"zero_optimization": {"zenflow": {}}}, "but it is set by torch's optimiser (None)"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "but it is set by torch's optimiser"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "but it is set by the check for non-finite gradients"),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "but it is set by the rule that nothing is compiled at first use",
        ),
    ],
)
def test_a_key_that_contradicts_the_configuration_is_refused(given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        options(options=given)


def test_keys_that_deepspeed_would_ignore_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"deepspeed.options: unknown key 'gradient_cliping'.*did you mean 'gradient_"):
        options(options={"gradient_cliping": 1.0})
    with pytest.raises(UserError, match=r"deepspeed.options.zero_optimization: unknown key 'reduce_bucket'"):
        zero = options(options={"zero_optimization": {"reduce_bucket": 1}})["zero_optimization"]
        known = [*options()["zero_optimization"], "reduce_bucket_size"]
        check_known(zero, known, "deepspeed.options.zero_optimization")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"deepspeed": {"stage": 0, "offload_optimizer": True}}, "offload_optimizer needs a split optimiser state"),
        ({"deepspeed": {"stage": 2, "offload_parameters": True}}, "offload_parameters needs stage 3"),
        ({"deepspeed": {"stage": 3, "offload_parameters": True}}, "offload_parameters needs stage 3 and offload_opt"),
        ({"deepspeed": {"stage": 4}}, "it must be 0, 1, 2 or 3"),
        ({"deepspeed": {"stages": 1}}, "unknown key 'deepspeed.stages'; did you mean 'deepspeed.stage'?"),
        ({"deepspeed": {"timeout": 0}}, "deepspeed.timeout is 0"),
        (
            {"deepspeed": {}, "training": {"steps": 1, "muon_rate": 0.01}},
            "splits them; remove muon_rate",
        ),
        (
            {"deepspeed": {"stage": 3}, "training": {"steps": 1, "compile": True}},
            "remove training.compile, or set deepspeed.stage to 2",
        ),
    ],
)
def test_an_impossible_section_is_one_sentence(changes, sentence):
    content = {"output": "o", "regions": "r", "captions": "c", "training": {"steps": 1}} | changes
    with pytest.raises(UserError, match=re.escape(sentence)):
        validate(PretrainConfig, content, "x.yaml")


def test_muon_is_allowed_where_matrices_stay_whole():
    content = {"output": "o", "regions": "r", "captions": "c", "training": {"steps": 1, "muon_rate": 0.01}}
    assert validate(PretrainConfig, content | {"deepspeed": {"stage": 0}}, "x.yaml").training.muon_rate == 0.01
