"""What only a GPU shows: the same numbers as on the processor, within the rounding of the precision.

`pytest tests/test_cuda.py` takes about a minute there; without a GPU all of it is skipped.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dimvl.checkpoints import latest_checkpoint
from dimvl.export import export
from dimvl.model.attention import attend
from dimvl.model.embeddings import RegionEmbeddings
from dimvl.model.plan import plan_attention
from dimvl.predictor import Predictor
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extractors.load import load_extractor
from dimvl.training.run import run_training
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.factories import make_batch, make_layout, make_model
from tests.model.test_attention import outputs_and_gradients
from tests.tiny_runs import make_config, make_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # torch's compiler uses what torch has deprecated
]
HEADS, WIDTH = 2, 8  # flash attention takes multiples of 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 12, empty=3)


def losses(data, output, **changes):
    """Return the loss of each step."""
    found = []
    settings = {"model": {"layers": 2, "dropout": 0, "width": 32, "heads": 2}, **changes}
    run_training(make_config(data, output, **settings), lambda report: found.append(report.loss))
    return found


@pytest.mark.parametrize("short", [0, 192])
@pytest.mark.parametrize("seed", range(6))
def test_both_kernels_equal_the_exact_reference_in_outputs_and_gradients(seed, short, monkeypatch):
    monkeypatch.setattr("dimvl.model.attention.SHORT", short)
    layout = make_layout(seed)
    fast = outputs_and_gradients(layout, "varlen", "cuda", torch.bfloat16, WIDTH)
    slow = outputs_and_gradients(layout, "reference", width=WIDTH)
    for one, other in zip(fast, slow, strict=True):
        # inputs and outputs are rounded to 8 bits; values are about 1
        torch.testing.assert_close(one.double().cpu(), other, atol=4e-2, rtol=4e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_works_for_head_widths_that_flash_attention_does_not_take(dtype):
    plan = plan_attention(make_layout(1), "cuda")
    query, key, value = torch.randn(3, plan.num_rows, HEADS, 4, device="cuda", dtype=dtype).unbind()
    wanted = attend(plan, query.double(), key.double(), value.double(), "reference")
    torch.testing.assert_close(attend(plan, query, key, value).double(), wanted, atol=4e-2, rtol=4e-2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("split", [[], ["qkv"], ["qkv", "out", "norm", "ffn"]])
def test_a_model_on_the_gpu_has_the_outputs_and_gradients_of_the_cpu(split, compiled):
    torch._dynamo.reset()
    model, batch = make_model(split=split), make_batch(make_layout(4))
    found = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        if compiled and device == "cuda":
            model.encoder.compile_blocks()
        rows = model(batch.to(torch.device(device)))
        gradients = torch.autograd.grad(rows.square().sum(), model.encoder.parameters())
        found.append([rows.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # fp32 sums in another order, over two layers


def test_int8_rows_give_the_float32_numbers_of_the_cpu_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (64, 2048), generator=generator).to(torch.int8)
    scales = torch.rand(64, 1, generator=generator)
    embeddings = RegionEmbeddings(2048, 8, max_images=4, times=False, dropout=0, norm_eps=1e-12)  # mean 0, std 1
    wanted = embeddings.standardise(rows, scales)
    found = embeddings.cuda().standardise(rows.cuda(), scales.cuda())
    assert torch.equal(found.cpu(), wanted) and torch.equal(wanted, torch.from_numpy(rows.numpy() * scales.numpy()))


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_a_run_on_the_gpu_follows_the_curve_of_the_cpu(data, tmp_path, task):
    curves = {
        (device, precision): losses(
            data, tmp_path / f"{device}-{precision}", task=task, training={"device": device, "precision": precision}
        )
        for device, precision in [("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")]
    }
    wanted = curves["cpu", "fp32"]
    assert len(wanted) == 6
    assert curves["cuda", "fp32"] == pytest.approx(wanted, rel=1e-4)  # six steps of AdamW amplify rounding
    assert curves["cuda", "bf16"] == pytest.approx(wanted, rel=0.03)  # 8 bits


def test_compiled_blocks_follow_the_curve_in_bf16_and_known_lengths_are_not_recompiled(data, tmp_path):
    torch._dynamo.reset()
    training = {"device": "cuda", "precision": "bf16"}
    plain = losses(data, tmp_path / "plain", training=training)
    assert losses(data, tmp_path / "compiled", training={**training, "compile": True}) == pytest.approx(plain, rel=0.02)
    with torch.compiler.set_stance("fail_on_recompile"):
        losses(data, tmp_path / "again", training={**training, "compile": True}, seed=4)


def test_a_deterministic_run_on_the_gpu_is_bit_identical_and_resumes_as_if_it_had_not_stopped(data, tmp_path):
    training = {"device": "cuda", "precision": "bf16", "deterministic": True, "save_every": 3, "keep": 2}
    try:
        whole = losses(data, tmp_path / "whole", training=training)
        assert losses(data, tmp_path / "half", training=training) == whole
        (tmp_path / "half" / "checkpoints" / "step-00000006").rename(tmp_path / "gone")
        assert losses(data, tmp_path / "half", training=training) == whole[3:]
    finally:
        torch.use_deterministic_algorithms(False)
    folders = [latest_checkpoint(tmp_path / name) for name in ("whole", "half")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(("stage", "precision"), [(0, "bf16"), (2, "fp32"), (3, "bf16")])
def test_deepspeed_on_one_gpu_follows_the_curve_of_plain_torch(data, tmp_path, stage, precision):
    pytest.importorskip("deepspeed")
    training = {"device": "cuda", "precision": precision}
    plain = losses(data, tmp_path / "plain", training=training)
    changes = {"training": training, "deepspeed": {"stage": stage}}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # it can be started only once per process
        found = pool.submit(partial(losses, data, tmp_path / "deepspeed", **changes)).result()
    assert found == pytest.approx(plain, rel=1e-4 if precision == "fp32" else 0.03)
    names = set(load_file(latest_checkpoint(tmp_path / "plain") / "model.safetensors"))
    assert set(load_file(latest_checkpoint(tmp_path / "deepspeed") / "model.safetensors")) == names


def test_a_predictor_on_the_gpu_predicts_the_same_as_on_the_cpu(tmp_path):
    detector = make_detector()
    detector.save(tmp_path / "detector")
    run = write_run(tmp_path / "run", make_trained(all_abilities(detector.extractor)))
    export(run, tmp_path / "export", tmp_path / "detector")
    images = [make_image(seed) for seed in range(4)]
    one, other = (Predictor.from_pretrained(tmp_path / "export", device) for device in ("cpu", "cuda"))
    assert one.caption(images) == other.caption(images)
    question = "is the star above a circle"
    for ours, theirs in zip(one.answer(images, question), other.answer(images, question), strict=True):
        assert ours.text == theirs.text and ours.probability == pytest.approx(theirs.probability, abs=1e-3)


def test_features_of_a_backbone_on_the_gpu_are_those_of_the_cpu_within_bf16_under_the_same_fingerprint(tmp_path):
    import_torchvision()
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128, image_size=48, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    found, images = load_extractor("grid", {"grid": 3}, features=tmp_path), [make_image(seed) for seed in range(4)]
    arrays, before = [found.prepare(image) for image in images], found.extractor
    exact = found.detect_prepared(arrays)
    rounded = found.to("cuda").detect_prepared(arrays)
    assert found.extractor == before
    for one, other in zip(exact, rounded, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        difference = np.linalg.norm(one.features.astype(float) - other.features, axis=1)
        # bf16 rounds to 2**-9 of a value, and four layers do so some twenty times
        assert (difference < 0.03 * np.linalg.norm(one.features.astype(float), axis=1)).all()
    assert any(not np.array_equal(one.features, other.features) for one, other in zip(exact, rounded, strict=True))


def test_regions_found_on_the_gpu_are_those_of_the_cpu():
    detector, images = make_detector(), [make_image(seed) for seed in range(3)]
    found = []
    for device in ("cpu", "cuda"):
        found.append(detector.to(torch.device(device)).detect(images))
    assert sum(len(one.boxes) for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one.boxes), torch.as_tensor(other.boxes).cpu(), atol=1e-2, rtol=1e-3)
