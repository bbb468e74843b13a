import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.data.prefixes import ImageReader
from dimvl.errors import NotFiniteError, UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.showing import format_seconds
from dimvl.training.engine import TorchEngine
from dimvl.training.loop import seed_dropout
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import log_of, weights_of


def test_dropout_is_keyed_by_seed_step_micro_batch_and_rank():
    def draw(*key):
        seed_dropout(*key)
        return torch.rand(4).tolist()

    keys = [(1, 2, 3, 0), (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    assert draw(*keys[0]) == draw(*keys[0]) and len({tuple(draw(*key)) for key in keys}) == 5


def test_the_size_of_micro_batches_changes_the_weights_only_by_rounding(data, tmp_path):
    runs = []
    for rows in (50, 200):
        training = {"rows_per_micro_batch": rows, "learning_rate": 1e-3}
        run = run_training(make_config(data, tmp_path / str(rows), model={"dropout": 0}, training=training))
        runs.append(torch.nn.utils.parameters_to_vector(weights_of(run).values()))
        logs = log_of(run)
    small, large = runs
    # Adam divides tiny gradients by their own size, so fp32 rounding grows to a small part of a step of 1e-3
    assert (small - large).abs().max() < 2e-4
    assert (small - large).abs().mean() < 1e-6
    for one, other in zip(log_of(tmp_path / "50"), logs, strict=True):
        assert one["counts"] == other["counts"] and one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_logged_loss_is_the_weighted_sum_of_means_per_target(data, tmp_path):
    config = make_config(data, tmp_path, objectives={"weights": {"matching": 0.5, "object_class": 3}})
    run_training(config)
    weights = {
        "masked_lm": 1,
        "seq2seq_lm": 1,
        "masked_object/class": 3,
        "masked_object/feature": 1,
        "matching": 0.5,
    }
    for line in log_of(tmp_path):
        assert line["losses"].keys() == weights.keys()
        assert line["loss"] == pytest.approx(sum(weights[name] * loss for name, loss in line["losses"].items()))
        for name, loss in line["losses"].items():
            assert (loss > 0) == (line["counts"][name.partition("/")[0]] > 0)


def test_gradients_are_clipped_and_the_norm_before_clipping_is_logged(data, tmp_path, monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return real(self, *arguments)

    step.hooked = True  # otherwise torch wraps it again
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run_training(make_config(data, tmp_path, training={"clip": 0.25}))
    logged = [line["gradient_norm"] for line in log_of(tmp_path)]
    assert len(norms) == 6 and all(norm > 0.3 for norm in logged)
    assert norms == pytest.approx([0.25] * 6, rel=1e-3)


def test_the_learning_rate_of_each_step_is_logged(data, tmp_path):
    run_training(make_config(data, tmp_path, training={"warmup_steps": 2, "schedule": "linear"}))
    assert [line["learning_rate"] for line in log_of(tmp_path)] == pytest.approx(
        [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]
    )


def test_a_non_finite_loss_stops_the_run_and_names_loss_step_and_images(data, tmp_path, monkeypatch):
    real = ImageReader.read

    def read(self, images):
        found = real(self, images)
        for position, regions in zip(images.positions.tolist(), found, strict=True):
            if self.store.image_id(position) == "5":
                regions.features[1, 2] = np.nan  # the store's writer would refuse this
        return found

    monkeypatch.setattr(ImageReader, "read", read)
    shares = {"masked_lm": 1, "seq2seq_lm": 0, "masked_object": 0, "matching": 0}
    training = {"save_every": 1, "rows_per_step": 60}
    config = make_config(data, tmp_path, training=training, objectives={"shares": shares})
    with pytest.raises(NotFiniteError) as caught:
        run_training(config)
    found = re.fullmatch(
        r"the loss masked_lm is not finite at step (\d+), in (.*); nothing was saved; lower .*", str(caught.value)
    )
    assert "image 5" in found[2].split(", ")
    saved = latest_checkpoint(tmp_path)
    assert (check_checkpoint(saved)["step"] if saved else 0) == int(found[1]) - 1 == len(log_of(tmp_path))


def test_a_non_finite_gradient_stops_the_run_before_the_weights_change(data, tmp_path, monkeypatch):
    real = TorchEngine.backward

    def backward(self, loss, is_last):
        real(self, loss, is_last)
        if self.schedule.last_epoch == 2:
            self.task.model.tokens.word.weight.grad[0, 0] = float("nan")

    monkeypatch.setattr(TorchEngine, "backward", backward)
    config = make_config(data, tmp_path, training={"save_every": 1})
    with pytest.raises(NotFiniteError, match=r"gradient is not finite at step 3, in image .*nothing was saved"):
        run_training(config)
    assert check_checkpoint(latest_checkpoint(tmp_path))["step"] == 2
    monkeypatch.setattr(TorchEngine, "backward", real)
    run_training(config)
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path).values())


def test_a_gpu_out_of_memory_is_one_sentence_with_the_options_to_change(data, tmp_path, monkeypatch):
    def losses(engine, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nand more")

    monkeypatch.setattr(TorchEngine, "losses", losses)
    sentence = r"too small \(CUDA out of memory.* 9.00 GiB.\); lower training.rows_per_micro_batch \(80\), set training"
    with pytest.raises(UserError, match=sentence):
        run_training(make_config(data, tmp_path))


def test_scale_and_offset_of_the_features_change_nothing(data, tmp_path):
    """Twice the features plus 4 are exact in float16 except for the last bits, hence the tolerance."""
    store = RegionStore(data.regions)
    with RegionStoreWriter(tmp_path / "moved", store.extractor) as writer:
        for place in range(len(store)):
            regions = store.read(place)
            writer.add(replace(regions, features=(2 * regions.features + 4).astype(np.float16)))
    plain, moved = make_config(data, tmp_path / "a"), make_config(data, tmp_path / "b", regions=tmp_path / "moved")
    for config in (plain, moved):
        run_training(config)
    losses = [[line["loss"] for line in log_of(run)] for run in (tmp_path / "a", tmp_path / "b")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_seconds_are_written_as_hours_minutes_and_seconds():
    assert [format_seconds(s) for s in (0.4, 59.6, 3599.4, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


def test_work_besides_the_steps_reports_its_progress(data, tmp_path):
    reported = []
    validation = {"questions": data.questions, "annotations": data.annotations, "every": 3}
    config = make_config(data, tmp_path / "run", "vqa", validation=validation)
    run_training(config, progress=lambda *work: reported.append(work))
    assert reported[0] == ("texts tokenised", 16, 16)
    batches = [work for work in reported if work[0] == "batches validated"]
    assert batches == 2 * [("batches validated", done, batches[-1][2]) for done in range(1, batches[-1][2] + 1)]
    assert len(batches) >= 4
