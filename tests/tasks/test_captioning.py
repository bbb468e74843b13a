from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dimvl.data.examples import collate
from dimvl.data.targets import DropWorst
from dimvl.data.tokenizer import Tokenizer
from dimvl.objectives import normalise
from dimvl.tasks.base import seq2seq_text
from dimvl.tasks.captioning.config import DropWorstConfig, Seq2seqConfig
from dimvl.tasks.captioning.training import OBJECTIVE, CaptionModule, CaptionSource
from tests.factories import make_model, make_processor
from tests.tiny_runs import caption_store, image_reader, make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 6, captions=5)


DROP = DropWorstConfig(share=0.4, after=2)


def make_source(data, variant="causal", drop=DROP):
    processor = make_processor()
    seq2seq = Seq2seqConfig(variant=variant, captions=5)
    return CaptionSource(
        caption_store(data, processor), image_reader(data, processor), seq2seq, processor.tokenizer, 0, drop
    )


def dropped(example):
    return 0 if example.target is None else example.target.texts


def make_task(smoothing=0.1):
    processor = make_processor(captions=True)
    model = make_model(4, vocabulary=len(processor.tokenizer), word_head=True)
    return CaptionModule(model, processor, smoothing)


def obvious_loss(task, examples):
    """Compute every caption separately, and drop the worst of each image by loss per word."""
    total = 0.0
    for example in examples:
        captions = []
        for text in example.texts:
            batch = collate([replace(example, texts=[text], target=None)], task.shape)
            targets = batch.targets[OBJECTIVE]
            logits = task.model.word_head(task.model(batch)[targets.rows])
            captions.append(
                [
                    F.cross_entropy(row, label, label_smoothing=task.smoothing)
                    for row, label in zip(logits, targets.labels, strict=True)
                ]
            )
        captions.sort(key=lambda losses: sum(losses).item() / len(losses))
        kept = captions[: len(captions) - dropped(example)]
        total = total + sum(loss for losses in kept for loss in losses)
    return total


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_the_worst_captions_of_each_image_are_dropped_as_by_a_plain_loop(data, variant):
    source, task = make_source(data, variant), make_task()
    examples = [source.build(2, index) for index in range(len(source))]
    assert [(len(d.texts), dropped(d)) for d in examples] == [(2, 0), (3, 1), (4, 1), (5, 2), (1, 0), (2, 0)]
    loss = task(collate(examples, task.shape))[OBJECTIVE]
    # fp32 sums in another order
    torch.testing.assert_close(loss, obvious_loss(task, examples), atol=1e-3, rtol=1e-5)
    with_all = task(collate([replace(example, target=None) for example in examples], task.shape))[OBJECTIVE]
    assert loss < 0.9 * with_all


def test_micro_batches_drop_the_same_captions_as_one_large_batch_with_the_same_gradient(data):
    source, task = make_source(data), make_task()
    examples = [source.build(2, index) for index in range(len(source))]
    gradients = []
    for parts in ([examples], [examples[:1], examples[1:4], [], examples[4:]]):
        batches = [collate(part, task.shape) for part in parts]
        count = sum(batch.counts()[OBJECTIVE] for batch in batches)
        task.zero_grad()
        for batch in batches:
            normalise(task(batch), {OBJECTIVE: count}, task.weights).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)  # fp32 sums in another order


def test_a_dropped_caption_gives_no_gradient(data):
    source, task = make_source(data), make_task(smoothing=0.0)
    [example] = [replace(source.build(2, 3), target=DropWorst(4))]
    loss = task(collate([example], task.shape))[OBJECTIVE]
    alone = [
        task(collate([replace(example, texts=[text], target=None)], task.shape))[OBJECTIVE] for text in example.texts
    ]
    counts = [len(text.labels) for text in example.texts]
    best = min(range(5), key=lambda place: alone[place].item() / counts[place])
    torch.testing.assert_close(loss, alone[best])


def test_dropping_begins_after_the_configured_epochs(data):
    source = make_source(data)
    assert [dropped(source.build(epoch, 3)) for epoch in range(4)] == [0, 0, 2, 2]
    assert dropped(make_source(data, drop=None).build(9, 3)) == 0


def test_without_dropping_the_loss_covers_all_words(data):
    source, task = make_source(data), make_task()
    batch = collate([source.build(0, index) for index in range(len(source))], task.shape)
    targets = batch.targets[OBJECTIVE]
    logits = task.model.word_head(task.model(batch)[targets.rows])
    wanted = F.cross_entropy(logits, targets.labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(task(batch)[OBJECTIVE], wanted)


def test_with_the_share_of_beit3_70_per_cent_of_words_and_end_are_masked():
    tokenizer, words = Tokenizer.train(["a b c d e f g h i j k l"], 60), np.arange(5, 24)
    generator = np.random.default_rng(0)
    shares, ends = [], []
    for _ in range(300):
        text = seq2seq_text(words, generator, tokenizer, "masked", 0.7)
        shares.append(len(text.places) / 20)
        ends.append(19 in text.places)
    assert np.mean(shares) == pytest.approx(0.7, abs=0.01) and np.mean(ends) == pytest.approx(0.7, abs=0.1)
