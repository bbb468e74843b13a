"""Contrastive alignment: groups, what images and texts see when they are alone, and the losses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.data.align_targets import IGNORED, OTHER, OWN, AlignTargets
from dimvl.data.epoch_plan import plan_epoch
from dimvl.data.examples import collate
from dimvl.errors import UserError
from dimvl.objectives import contrastive_losses, token_similarities
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ContrastiveConfig, ObjectivesConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource, align
from tests.factories import make_model, make_processor, make_tokenizer
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data

TOKENIZER = make_tokenizer()
ALONE = SharesConfig(**{name: float(name == "contrastive") for name in SharesConfig.model_fields})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 9, empty=3)


def make_source(data, seed=1, captions=1, group=4):
    processor = make_processor()
    settings = ObjectivesConfig(shares=ALONE, contrastive=ContrastiveConfig(group=group))
    arguments = (
        caption_store(data, processor),
        image_reader(data, processor),
        settings,
        Seq2seqConfig(captions=captions),
    )
    return PretrainSource(*arguments, processor.tokenizer, seed)


def make_task(**changes):
    model = make_model(len(TOKENIZER), vocabulary=len(TOKENIZER), aligned=8, **changes)
    return PretrainModule(model, make_processor(), ObjectivesConfig(shares=ALONE))


def build(source, *indexes, epoch=0):
    return source.build_all(epoch, np.array(indexes))


# --- groups


def test_a_group_has_its_image_and_others_none_twice_and_all_pairs_occur(data):
    source, seen = make_source(data), set()
    for epoch in range(60):
        for index in range(len(source)):
            members = source._groups.members(epoch, index).tolist()
            assert members[0] == index and len(set(members)) == 4
            seen |= {(index, other) for other in members[1:]}
    assert len(seen) == 9 * 8
    assert source._groups.members(5, 2).tolist() == make_source(data)._groups.members(5, 2).tolist()
    assert any(
        source._groups.members(5, index).tolist() != make_source(data, 2)._groups.members(5, index).tolist()
        for index in range(9)
    )


def test_a_group_of_all_images_has_each_of_them(data):
    assert sorted(make_source(data, group=9)._groups.members(0, 4).tolist()) == list(range(9))
    with pytest.raises(UserError, match=r"^contrastive\.group is 10 but only 9 images have captions; lower"):
        make_source(data, group=10)


def test_costs_bound_the_rows_of_a_group(data):
    source = make_source(data, captions=2)
    costs = all_costs(source, 3)
    for index in range(len(source)):
        rows = collate(build(source, index, epoch=3), make_task().shape).layout.num_rows
        assert rows <= costs[index] < 2 * rows


def test_a_group_of_more_rows_than_a_step_names_the_size_of_groups(data):
    with pytest.raises(UserError, match=r"rows_per_step 50; raise it, or lower contrastive\.group or inputs\.max_reg"):
        plan_epoch(make_source(data), 0, seed=1, row_budget=50)


def test_equal_texts_and_shared_images_are_never_negatives(tmp_path):
    data = make_data(tmp_path, 4)
    texts = [["a red star", "a circle"], ["a red star"], ["two stars"], ["a circle", "a square"]]
    captions = [(image, text) for image, own in enumerate(texts, start=1) for text in own]
    records = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    data.captions.write_text(json.dumps({"annotations": records}))
    source = make_source(data, captions=2)
    members, examples = source._groups.members(0, 0).tolist(), build(source, 0)
    owners = [image for image in members for _ in texts[image]]
    drawn = [text for image in members for text in texts[image]]
    for image, example in zip(members, examples, strict=True):
        wanted = [
            OWN if owner == image else IGNORED if text in texts[image] else OTHER
            for owner, text in zip(owners, drawn, strict=True)
        ]
        assert example.target.relations.tolist() == wanted

    lines = [{"id": 1, "images": ["1", "2"], "caption": "a star"}, {"id": 2, "images": ["2"], "caption": "two stars"}]
    lines += [{"id": 3, "images": ["3"], "caption": "a square"}]
    jsonl = data.captions.with_suffix(".jsonl")
    jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = make_source(replace(data, captions=jsonl), group=3)
    relations = [example.target.relations.tolist() for example in build(source, 0)]
    assert relations == [[OWN, IGNORED, OTHER], [IGNORED, OWN, OTHER], [OTHER, OTHER, OWN]]


# --- the losses


def dense(aligned, targets):
    """Both losses as their definitions say, image by image and text by text."""
    sums, image, text = [0.0, 0.0], 0, 0
    regions = aligned.regions.split(list(targets.region_counts))
    words = aligned.words.split(list(targets.word_counts))
    place = 0
    for images, texts in targets.groups:
        relations = targets.relations[place : place + images * texts].view(images, texts)
        place += images * texts
        whole = aligned.images[image : image + images] @ aligned.texts[text : text + texts].T
        to_texts, to_images = torch.zeros(images, texts), torch.zeros(images, texts)
        for i in range(images):
            for t in range(texts):
                similar = regions[image + i] @ words[text + t].T
                if len(similar):
                    to_texts[i, t] = similar.max(dim=1).values.mean()
                    to_images[i, t] = similar.max(dim=0).values.mean()
        for which, (rows, columns) in enumerate(((whole, whole), (to_texts, to_images))):
            for i in range(images):
                own = [t for t in range(texts) if relations[i, t] == OWN]
                allowed = [t for t in range(texts) if relations[i, t] != IGNORED]
                for t in own:
                    logits = aligned.scales[which] * rows[i, allowed]
                    loss = logits.logsumexp(0) - aligned.scales[which] * rows[i, t]
                    others = [j for j in range(images) if relations[j, t] != IGNORED]
                    logits = aligned.scales[which] * columns[others, t]
                    loss = loss + logits.logsumexp(0) - aligned.scales[which] * columns[i, t]
                    sums[which] = sums[which] + 0.5 * loss / len(own)
        image, text = image + images, text + texts
    return tuple(sums)


def test_losses_and_gradients_equal_those_of_a_dense_implementation(data):
    source, task = make_source(data, captions=2), make_task()
    examples = build(source, 0, 2, 5)
    for example in examples:  # the data have no equal texts
        relations = example.target.relations
        relations[np.flatnonzero(relations == OTHER)[0]] = IGNORED
    batch = collate(examples, task.shape)
    targets = batch.targets["contrastive"]
    results = []
    for losses in (lambda a: contrastive_losses(a, targets), lambda a: dense(a, targets)):
        task.zero_grad()
        found = losses(align(task.model, targets, task.model(batch)))
        sum(found).backward()
        results.append(([float(one.detach()) for one in found], {n: p.grad for n, p in task.named_parameters()}))
    (loss, gradients), (wanted, wanted_gradients) = results
    assert loss == pytest.approx(wanted, rel=1e-5) and len(targets) == 12
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m)


def test_an_image_alone_sees_no_text_and_a_text_no_image_and_no_other_text(data):
    source, task = make_source(data, captions=2), make_task()
    examples = build(source, 1)
    other = [replace(examples[0], texts=examples[1].texts[:1] * len(examples[0].texts)), *examples[1:]]
    batches = [collate(some, task.shape) for some in (examples, other)]
    before, after = (align(task.model, b.targets["contrastive"], task.model(b)) for b in batches)
    torch.testing.assert_close(before.images, after.images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(before.regions, after.regions, atol=1e-5, rtol=1e-4)
    changed = len(examples[0].texts)
    assert not torch.allclose(before.texts[:changed], after.texts[:changed], atol=1e-3)
    torch.testing.assert_close(before.texts[changed:], after.texts[changed:], atol=1e-5, rtol=1e-4)

    alone = [replace(example, prefix=examples[0].prefix) for example in examples]
    batch = collate(alone, task.shape)
    swapped = align(task.model, batch.targets["contrastive"], task.model(batch))
    torch.testing.assert_close(before.texts, swapped.texts, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("split", [(), ("qkv",), ("qkv", "out", "norm", "ffn")])
def test_every_split_encodes_images_and_texts_alone(data, split):
    source, task = make_source(data), make_task(split=split)
    batch = collate(build(source, 0), task.shape)
    loss = sum(task(batch).values())
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in task.model.align_head.parameters())


def test_with_every_sublayer_split_a_text_has_no_vision_weight_but_the_context_of_an_image_has_language_weights(data):
    task = make_task(split=("qkv", "out", "norm", "ffn"))
    batch = collate(build(make_source(data), 0), task.shape)
    used = {}
    for kind in ("images", "regions", "texts", "words"):
        task.zero_grad()
        found = align(task.model, batch.targets["contrastive"], task.model(batch))
        (getattr(found, kind) * torch.arange(8.0)).sum().backward()
        weights = task.model.encoder.layers.named_parameters()
        touched = [name for name, weight in weights if weight.grad is not None and weight.grad.any()]
        used[kind] = {modality for modality in ("vision", "language") if any(modality in name for name in touched)}
    both = {"vision", "language"}
    assert used == {"images": both, "regions": both, "texts": {"language"}, "words": {"language"}}


def test_token_wise_scores_leave_out_nothing_and_an_image_without_regions_scores_0():
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(5, 4, generator=generator), torch.randn(6, 4, generator=generator)
    to_texts, to_images = token_similarities(regions, (2, 0, 3), words, (1, 5))
    similar = regions @ words.T
    assert to_texts[1].tolist() == to_images[1].tolist() == [0, 0]
    assert to_texts[2, 1] == pytest.approx(similar[2:, 1:].max(dim=1).values.mean().item())
    assert to_images[2, 1] == pytest.approx(similar[2:, 1:].max(dim=0).values.mean().item())


def test_the_similarities_counted_are_those_within_groups(data):
    batch = collate(build(make_source(data), 0, 4), make_task().shape)
    targets = batch.targets["contrastive"]
    assert isinstance(targets, AlignTargets) and targets.groups == ((4, 4), (4, 4))
    halves = [(sum(targets.region_counts[a : a + 4]), sum(targets.word_counts[a : a + 4])) for a in (0, 4)]
    assert targets.similarities == sum(16 + regions * words for regions, words in halves)
