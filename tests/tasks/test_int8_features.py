"""Features that a store keeps as int8: they reach the model as they are kept, and nothing is lost on the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.checkpoints import latest_checkpoint
from dimvl.data.examples import collate
from dimvl.data.prefixes import make_prefix
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ContrastiveConfig, ObjectivesConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from dimvl.training.run import run_training
from tests.factories import CLASSES, make_model, make_processor
from tests.tiny_runs import caption_store, image_reader, make_config, make_data

PROCESSOR = make_processor(concepts="both")
OBJECTIVES = list(SharesConfig.model_fields)
GROUPS = ContrastiveConfig(group=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3, feature_dtype="int8")


def make_source(data, objective):
    shares = SharesConfig(**{name: float(name == objective) for name in OBJECTIVES})
    arguments = (
        caption_store(data, PROCESSOR),
        image_reader(data, PROCESSOR),
        ObjectivesConfig(shares=shares, contrastive=GROUPS),
    )
    return PretrainSource(*arguments, Seq2seqConfig(captions=2), PROCESSOR.tokenizer, 1)


def make_task(data):
    """Make a task with the feature statistics of the store, as in a run."""
    heads = {"word_head": True, "match_head": True, "classes": len(CLASSES), "aligned": 8, "region_words": True}
    task = PretrainModule(make_model(vocabulary=len(PROCESSOR.tokenizer), **heads), PROCESSOR, ObjectivesConfig())
    mean, deviation = map(torch.from_numpy, feature_statistics(RegionStore(data.regions)))
    task.model.regions.feature_mean.copy_(mean)
    task.model.regions.feature_std.copy_(deviation)
    return task


def everything(task, batch):
    """Rows, losses and gradients."""
    task.zero_grad()
    losses = task(batch)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    return {"rows": task.model(batch).detach(), **losses, **gradients}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_losses_and_gradients_equal_those_of_float32_features_bit_for_bit(data, objective):
    source, task = make_source(data, objective), make_task(data)
    kept = collate(source.build_all(0, np.arange(len(source))), task.shape)
    read = source.images.read
    source.images.read = lambda positions: [regions.dequantised() for regions in read(positions)]
    numbers = collate(source.build_all(0, np.arange(len(source))), task.shape)
    assert (kept.region_features.dtype, numbers.region_features.dtype) == (torch.int8, torch.float32)
    assert kept.counts()[objective] and numbers.region_feature_scales is None
    found, wanted = everything(task, kept), everything(task, numbers)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_the_scale_of_a_row_changes_the_input_and_the_target(data):
    source, task = make_source(data, "masked_object"), make_task(data)
    batch = collate(source.build_all(0, np.arange(len(source))), task.shape)
    larger = replace(batch, region_feature_scales=2 * batch.region_feature_scales)
    assert not torch.equal(task.model(batch), task.model(larger))
    with torch.no_grad():
        task.model.regions.feature.weight.zero_()  # now only the targets depend on the features
        one, other = task(batch), task(larger)
    assert torch.equal(task.model(batch), task.model(larger))
    assert one["masked_object/feature"] != other["masked_object/feature"]


def test_an_image_read_alone_has_the_same_rows_as_in_a_batch(data):
    source, task, store = make_source(data, "matching"), make_task(data), RegionStore(data.regions)
    examples = np.arange(len(source))
    together = source.build_all(0, examples)
    positions = source.prefix_images(examples).positions.tolist()
    alone = [
        replace(example, prefix=make_prefix(store.read(position), PROCESSOR.tags))
        for example, position in zip(together, positions, strict=True)
    ]
    rows = [task.model(collate(examples, task.shape)) for examples in (together, alone)]
    assert torch.equal(*rows)


def test_a_run_with_loader_processes_equals_one_without(data, tmp_path):
    runs = [
        run_training(make_config(data, tmp_path / str(workers), training={"workers": workers})) for workers in (0, 2)
    ]
    weights = [(latest_checkpoint(run) / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
