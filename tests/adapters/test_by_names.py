"""Class prompts: soft rows before the names of labels, trained by the alignment of a base that stays as it is."""

import json
from dataclasses import replace

import pytest
import torch

from dimvl.checkpoints import read_log
from dimvl.data.prefixes import PrefixImages
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.model.flops import Flops, flops_by_part
from dimvl.model.work import Work
from dimvl.planning.cluster import Cluster
from dimvl.planning.data import DataOverrides, gather
from dimvl.planning.plan import average_example, average_step, make_plan, meta_model
from dimvl.regions.store import RegionStore
from dimvl.tasks.classification.prediction import label_probabilities, tokenise
from dimvl.tasks.classification.training import OBJECTIVE, ClassifyModule, name_batch
from dimvl.tasks.retrieval.prediction import embed_images
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests.model.test_flops import counted
from tests.planning.runs import all_batches
from tests.tiny_runs import CONFIGS, make_config, make_data
from tests.training.runs import Killed, at_step, bytes_of, kill, weights_of

MODEL = {"layers": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A pretraining run that aligns images and texts."""
    shares = {"shares": {"contrastive": 1.0}, "contrastive": {"group": 3, "width": 8}}
    run = tmp_path_factory.mktemp("runs") / "base"
    return run_training(make_config(data, run, model=MODEL, objectives=shares, training={"steps": 2}))


def configured(data, base, folder, text="", **changes):
    labels = ("red star", "blue square", "circle")
    records = [{"image": place + 1, "label": labels[place % 3], "text": text} for place in range(6)]
    items = folder / "items.jsonl"
    folder.mkdir(exist_ok=True)
    items.write_text("".join(json.dumps(record) + "\n" for record in records))
    content = make_config(data, folder / "run").model_dump(include={"inputs", "training", "regions", "seed"})
    content |= {"task": "classify", "output": folder / "run", "items": items, "initial": base, "by_names": True}
    content |= {
        "model": {**make_config(data, folder).model.model_dump(), **MODEL},
        "adapter": {"prompt": 4, "head": False},
    }
    content["training"] |= {"steps": 30, "learning_rate": 0.3, **changes.pop("training", {})}
    return CONFIGS["classify"](**{**content, **changes})


def test_soft_rows_alone_learn_the_labels_and_leave_the_images_where_the_base_has_them(data, base, tmp_path):
    run = run_training(configured(data, base, tmp_path))
    assert weights_of(run).keys() == {"tokens.prompt.weight"}
    losses = [line["loss"] for line in read_log(run / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.1  # soft rows shift all sentences, so they cannot learn much of random images
    alone = load_model(base)
    trained, store = alone.with_adapter(export(run, tmp_path / "out")), RegionStore(data.regions)
    processor = trained.processor
    images = PrefixImages.find(store, [((str(number),), ()) for number in range(1, 7)])
    prefixes = processor.reader(store).prefixes(images)
    found = label_probabilities(trained, prefixes, tokenise(trained, [""] * len(prefixes)))
    names = name_batch(processor)
    with torch.inference_mode():
        sentences = trained.model(names)[names.targets[OBJECTIVE].rows]
        empty = sentences[:0]
        aligned = trained.model.align_head(empty, empty, sentences, empty)
    logits = aligned.scales[0] * embed_images(alone, prefixes).pooled @ aligned.texts.T
    torch.testing.assert_close(found, logits.softmax(dim=1))
    with pytest.raises(
        UserError, match=r"compares images with names of labels and takes no text \('a star'\); omit it"
    ):
        tokenise(trained, ["a star"])


def test_a_killed_run_resumes_bit_for_bit(data, base, tmp_path):
    training = {"steps": 5, "save_every": 2}
    whole = run_training(configured(data, base, tmp_path / "whole", training=training))
    config = configured(data, base, tmp_path / "killed", training=training)
    with pytest.raises(Killed):
        run_training(config, at_step(3, kill))
    assert bytes_of(run_training(config)) == bytes_of(whole)


def test_what_cannot_be_compared_by_names_is_one_sentence(data, base, tmp_path):
    with pytest.raises(UserError, match=r"item 0 has a text, which by_names ignores; remove by_names"):
        run_training(configured(data, base, tmp_path / "text", "a star"))
    plain = run_training(make_config(data, tmp_path / "plain", model=MODEL, training={"steps": 1}))
    with pytest.raises(UserError, match=r"does not align images and texts, by which by_names compares; give a base"):
        run_training(configured(data, plain, tmp_path / "none"))
    with pytest.raises(UserError, match=r"with 11 soft rows more than inputs.text_tokens 12; lower adapter.prompt"):
        run_training(configured(data, base, tmp_path / "long", adapter={"prompt": 11, "head": False}))
    with pytest.raises(ValueError, match=r"by_names trains soft rows before the names of labels; set adapter.prompt"):
        configured(data, base, tmp_path / "head", adapter={"head": True})


def test_a_plan_counts_the_soft_rows_as_trained_but_in_no_context_also_of_a_run(data, base, tmp_path):
    config = configured(data, base, tmp_path, training={"steps": 1})
    in_contexts = configured(data, base, tmp_path / "other", by_names=False, adapter={"prompt": 4})
    context, other = (gather(one, DataOverrides()).context for one in (config, in_contexts))
    assert other == context + 4
    run_training(config)
    assert make_plan(config, Cluster(gpus=1, gpu_memory=80, peak=100, utilisation=0.4)).trained == 4 * 16


def test_a_plan_counts_the_sentences_of_all_labels_in_every_micro_batch(data, base, tmp_path):
    config = configured(data, base, tmp_path, training={"steps": 1})
    run_training(config)
    facts = gather(config, DataOverrides())
    example, model = average_example(config, facts), meta_model(config, facts)
    [batch], images = all_batches(config, epochs=1)
    names = name_batch(Processor.load(config.output))
    planned = example.work * images + example.per_micro_batch
    real = Work.of(batch, padded=False) + Work.of(names, padded=False)
    assert (planned.vision, planned.language) == pytest.approx((real.vision, real.language))
    assert planned.attention.pairs == pytest.approx(real.attention.pairs, rel=0.15)  # lengths differ from their means
    module = ClassifyModule(load_model(config.output).model, Processor.load(config.output))
    module.model.requires_grad_(False).tokens.prompt.requires_grad_(True)
    expected = sum(flops_by_part(model, planned).values(), Flops())
    # torch pads attention.
    assert (expected.forward, expected.backward) == pytest.approx(counted(module, batch), rel=0.05)
    training = config.training.model_copy(update={"rows_per_step": 3000, "rows_per_micro_batch": 500})
    step = average_step(training, example, ranks=2)
    alone = average_step(training, replace(example, per_micro_batch=Work()), ranks=2)
    assert step.micro_batches == alone.micro_batches == 3 and step.examples == alone.examples
    rows = names.layout.num_rows
    assert step.work.rows - alone.work.rows == pytest.approx(6 * rows)
    assert step.micro_batch.rows - alone.micro_batch.rows == pytest.approx(rows)
