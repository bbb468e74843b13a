"""Prefixes of several images: from the region store to the rows of the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.checkpoints import latest_checkpoint
from dimvl.data.answers import label_ids
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.layout import ranges
from dimvl.data.prefixes import ImageReader, Prefix, PrefixImages, best_regions, join_images, make_prefix
from dimvl.data.text_store import LabelledText, text_store
from dimvl.data.trained_on import read_trained_on, trained_images
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.training import QuestionSource
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.self_critical import SampleSource
from dimvl.tasks.captioning.training import CaptionSource
from dimvl.tasks.pretraining.config import ContrastiveConfig, ObjectivesConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainSource
from dimvl.training.run import run_training
from tests.factories import FEATURE_WIDTH, TEXTS, make_model, make_processor, make_regions, make_store
from tests.tiny_runs import all_costs, caption_store, image_reader, make_config, make_data, make_several

PROCESSOR = make_processor(answers=("yes", "no"))
TOKENIZER = PROCESSOR.tokenizer
SHAPE = BatchShape(objectives={}, text_start=PROCESSOR.text_start, feature_width=FEATURE_WIDTH)
OBJECTIVES = list(SharesConfig.model_fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_several(make_data(tmp_path_factory.mktemp("data"), empty=3))


def several(*groups):
    """Images of some prefixes, by position, without times."""
    return PrefixImages(np.concatenate(groups).astype(np.int64), np.array([len(group) for group in groups]))


def pretraining(data, objective=None, processor=PROCESSOR, texts=None, **config):
    shares = SharesConfig(**{name: float(objective in (None, name)) for name in OBJECTIVES})
    settings = ObjectivesConfig(shares=shares, contrastive=ContrastiveConfig(group=3)).model_copy(update=config)
    texts = texts or caption_store(data, processor)
    return PretrainSource(texts, image_reader(data, processor), settings, Seq2seqConfig(captions=2), TOKENIZER, 1)


def segments(context):
    """Tokens of a context between its separators."""
    assert context[0] == TOKENIZER.cls and context[-1] == TOKENIZER.sep
    ends = np.flatnonzero(context == TOKENIZER.sep)
    return [context[start:end].tolist() for start, end in zip([1, *(ends[:-1] + 1)], ends, strict=True)]


def rows_of(model, *prefixes):
    """What the model makes of prefixes without texts: a list of (rows, D) for each."""
    batch = collate([Example(source="", objective="", prefix=p, texts=[], seq2seq=True) for p in prefixes], SHAPE)
    with torch.no_grad():
        found = model(batch)
    layout = batch.layout
    rows = [
        np.concatenate([ranges(np.array([start]), np.array([count])) for start, count in both])
        for both in zip(
            zip(layout.region_starts, layout.num_regions, strict=True),
            zip(layout.context_starts, layout.num_context, strict=True),
            strict=True,
        )
    ]
    return [found[own] for own in rows]


# --- prefixes


def test_a_prefix_of_two_images_is_their_regions_in_order_and_their_tags_between_separators():
    first, second = make_regions(1, count=3), make_regions(2, count=2)
    prefix = make_prefix(join_images([first, second], [0, 2.5]), PROCESSOR.tags)
    assert np.array_equal(prefix.features, np.concatenate([first.features, second.features]))
    assert np.array_equal(prefix.boxes, np.concatenate([first.boxes, second.boxes]))
    assert prefix.image_index.tolist() == [0, 0, 0, 1, 1] and not prefix.hidden.any()
    assert prefix.times.tolist() == [0, 0, 0, 2.5, 2.5]
    half = make_processor(concept_tokens=5).tags  # (12 - 1 separator) // 2
    wanted = [*make_prefix(first, half).context, *make_prefix(second, half).context[1:]]
    assert prefix.context.tolist() == wanted and wanted.count(TOKENIZER.sep) == 2


def test_one_image_joined_or_not_is_the_same_prefix():
    regions = make_regions(1, count=3)
    plain, joined = (make_prefix(r, PROCESSOR.tags) for r in (regions, join_images([regions])))
    for name in Prefix.__dataclass_fields__:
        one, other = getattr(plain, name), getattr(joined, name)
        assert one is other is None or np.array_equal(one, other)
    assert plain.features is regions.features, "nothing is copied"


@pytest.mark.parametrize("feature_dtype", ["float16", "int8"])
@pytest.mark.parametrize("most", [0, 2, 10])
def test_prefixes_read_from_the_store_are_those_made_of_each_image(tmp_path, feature_dtype, most):
    store = RegionStore(make_store(tmp_path / "store", 6, empty=3, feature_dtype=feature_dtype))
    reader = ImageReader(store, PROCESSOR.tags, most)
    groups = [[0, 2, 5], [1], [2], [4, 3], [0], [2, 1, 3, 4]]  # image 2 has no regions
    images = several(*groups)
    assert len(images) == 6
    for prefix, group in zip(reader.prefixes(images), groups, strict=True):
        read = [best_regions(store.read(position), most) for position in group]
        wanted = make_prefix(join_images(read), PROCESSOR.tags)
        scales = 1 if prefix.feature_scales is None else prefix.feature_scales
        assert np.array_equal(prefix.features * scales, wanted.features)
        for name in ("boxes", "image_index", "hidden", "context"):
            assert np.array_equal(getattr(prefix, name), getattr(wanted, name)), name
    used = [sum(min(most, len(store.read(position))) for position in group) for group in groups]
    assert reader.num_regions(images).tolist() == used
    assert reader.rows(images).tolist() == [len(p.features) + len(p.context) for p in reader.prefixes(images)]


def test_chosen_prefixes_keep_their_images_and_times():
    images = PrefixImages(np.array([5, 6, 7, 8, 9]), np.array([2, 1, 2]), np.arange(5, dtype=np.float32))
    chosen = images[np.array([2, 0, 2])]
    assert chosen.positions.tolist() == [8, 9, 5, 6, 8, 9] and chosen.counts.tolist() == [2, 2, 2]
    assert chosen.times.tolist() == [3, 4, 0, 1, 3, 4]
    assert len(images[np.arange(0)]) == 0 and images.sums(np.ones(5)).tolist() == [2, 1, 2]


def test_images_are_found_in_the_store_by_their_ids(tmp_path):
    store = RegionStore(make_store(tmp_path / "store", 6))
    images = PrefixImages.find(store, [(("3", "1"), ()), (("2",), (7.5,))])
    assert images.positions.tolist() == [2, 0, 1] and images.counts.tolist() == [2, 1]
    assert images.times.tolist() == [0, 0, 7.5]
    assert PrefixImages.find(store, [(("3",), ())]).times is None


def test_the_features_of_a_batch_are_not_copied(data):
    examples = pretraining(data).build_all(0, np.arange(8))
    batch = collate(examples, SHAPE)
    assert np.shares_memory(batch.region_features.numpy(), examples[-1].prefix.features)
    wanted = np.concatenate([example.prefix.image_index for example in examples])
    assert batch.region_image_index.tolist() == wanted.tolist() and wanted.max() == 3


# --- what the model sees


def test_the_order_of_images_matters_through_their_index_only():
    processor, model = make_processor(concepts="none"), make_model(vocabulary=len(TOKENIZER))
    first, second = make_regions(1, count=3), make_regions(2, count=2)
    prefix = make_prefix(join_images([first, second]), processor.tags)
    swapped = make_prefix(join_images([second, first]), processor.tags)
    relabelled = replace(swapped, image_index=1 - swapped.image_index)
    order = [2, 3, 4, 0, 1, 5, 6]
    one, other, same = rows_of(model, prefix, swapped, relabelled)
    torch.testing.assert_close(one, same[order])  # fp32: keys come in another order
    assert not torch.allclose(one, other[order], atol=1e-3)


def test_one_image_gives_the_same_rows_beside_prefixes_of_several():
    model = make_model(vocabulary=len(TOKENIZER))
    regions = [make_regions(seed, count=3) for seed in range(3)]
    alone = make_prefix(regions[0], PROCESSOR.tags)
    [wanted] = rows_of(model, alone)
    found = rows_of(model, make_prefix(join_images(regions[1:]), PROCESSOR.tags), alone)[1]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_texts_about_one_image_give_the_same_batches_with_and_without_arrays_of_groups(tmp_path, objective):
    data = make_data(tmp_path, empty=3)
    source = tmp_path / "one.json"
    source.write_text("")
    texts = [LabelledText(n, (str(1 + n % 6),), TEXTS[n % 3]) for n in range(20)]
    timed = [replace(text, times=(0.0,)) for text in texts]
    stores = [text_store(tmp_path / "cache", TOKENIZER, 16, [source], some) for some in (texts, timed)]
    assert [store.group_images is None for store in stores] == [True, False]
    batches = [
        [collate(pretraining(data, objective, texts=store).build_all(epoch, np.arange(6)), SHAPE) for epoch in range(3)]
        for store in stores
    ]
    for one, other in zip(*batches, strict=True):
        assert one.sources == other.sources and one.region_times is other.region_times is None
        for name in ("region_features", "region_image_index", "region_hidden", "token_ids", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


# --- hidden regions


def test_hiding_a_region_takes_its_tags_from_its_own_image_only():
    first, second = make_regions(1, count=3), make_regions(2, count=4)
    joined = join_images([first, second])
    shown = segments(make_prefix(joined, PROCESSOR.tags).context)
    for hidden_one in range(7):
        hidden = np.arange(7) == hidden_one
        found = segments(make_prefix(joined, PROCESSOR.tags, hidden).context)
        image = int(hidden_one >= 3)
        assert found[1 - image] == shown[1 - image]
        own = (first, second)[image]
        half = make_processor(concept_tokens=5).tags
        alone = make_prefix(own, half, hidden[:3] if image == 0 else hidden[3:])
        assert found[image] == segments(alone.context)[0]


def test_an_image_with_all_regions_hidden_leaves_an_empty_segment():
    joined = join_images([make_regions(1, count=2), make_regions(2, count=2), make_regions(3, count=2)])
    found = segments(make_prefix(joined, PROCESSOR.tags, np.array([0, 0, 1, 1, 0, 0], dtype=bool)).context)
    assert len(found) == 3 and found[1] == [] and found[0] and found[2]


@pytest.mark.parametrize("concepts", ["text", "both"])
def test_names_of_hidden_regions_reach_nothing_that_the_model_sees(data, concepts):
    source, images = pretraining(data, "masked_object", make_processor(concepts=concepts)), set()
    for index in range(len(source)):
        example = source.build(0, index)
        if example.objective != "masked_object":
            continue
        hidden, read = example.prefix.hidden, source.images.read

        def other_classes(positions, hidden=hidden, read=read):
            [regions] = read(positions)
            regions.class_ids[hidden] = (regions.class_ids[hidden] + 1) % 3
            regions.attribute_ids[hidden] = [0, 2]
            return [regions]

        source.images.read = other_classes
        other = source.build(0, index)
        source.images.read = read
        assert not np.array_equal(example.target.class_probabilities, other.target.class_probabilities)
        assert np.array_equal(example.prefix.context, other.prefix.context)
        for name in ("token_ids", "weights", "counts") if concepts == "both" else ():
            assert np.array_equal(getattr(example.prefix.words, name), getattr(other.prefix.words, name))
        images |= set(example.prefix.image_index[example.target.regions].tolist())
    assert len(images) > 1, "targets are in several images"


# --- examples


def all_sources(data):
    captions, reader = caption_store(data, PROCESSOR), image_reader(data, PROCESSOR)
    questions = data.captions.parent / "questions"
    labels = label_ids({"yes": 1.0}, {"yes": 0})
    texts = [LabelledText(n, (str(1 + n % 3), str(4 + n % 2)), TEXTS[n % 3], labels) for n in range(8)]
    asked = text_store(questions, TOKENIZER, 16, [data.questions], texts)
    return {
        "pretrain": pretraining(data),
        "pretrain, shared": pretraining(data, shared_prefix=True),
        "caption": CaptionSource(captions, reader, Seq2seqConfig(captions=2), TOKENIZER, 1),
        "sample": SampleSource(captions, reader, 2, 5, 1),
        "vqa": QuestionSource(asked, reader, PROCESSOR),
        "vqa, shared": QuestionSource(asked, reader, replace(PROCESSOR, shared_prefix=True)),
    }


def test_costs_bound_the_rows_of_every_example(data):
    for name, source in all_sources(data).items():
        drawn = 2 * 5 if name == "sample" else 0
        for epoch in range(4):
            costs = all_costs(source, epoch)
            for index in range(len(source)):
                rows = collate(source.build_all(epoch, np.array([index])), SHAPE).layout.num_rows + drawn
                assert rows <= costs[index], name
                assert source.costs(epoch, slice(index, index + 1)).tolist() == [costs[index]]


def test_examples_name_their_images_and_have_their_regions(data):
    source = all_sources(data)["caption"]
    store = source.images.store
    for index, example in enumerate(source.build_all(0, np.arange(len(source)))):
        ids = [store.image_id(p) for p in source.prefix_images(np.array([index])).positions.tolist()]
        names = ", ".join(ids[:3]) + (" and 1 more" if len(ids) > 3 else "")
        assert example.source == (f"image {names}" if len(ids) == 1 else f"images {names}")
        wanted = [best_regions(store.read(store.position(image)), 10).features for image in ids]
        assert np.array_equal(example.prefix.features, np.concatenate(wanted))


def test_a_negative_is_never_a_text_of_a_group_that_shares_an_image(data):
    source, negatives = pretraining(data, "matching", negative_share=1.0), 0
    texts = source.texts
    owners = {}
    for group in range(len(source)):
        for text in range(*texts.groups[group : group + 2]):
            owners.setdefault(tuple(texts.tokens(text).tolist()), []).append(group)
    for epoch in range(20):
        for index in range(len(source)):
            example = source.build(epoch, index)
            from_groups = owners[tuple(example.texts[0].token_ids[:-1].tolist())]
            if example.target.labels == [0]:
                negatives += 1
                assert any(not texts.share_images(index, group) for group in from_groups)
                assert index not in from_groups
    assert negatives > 100


# --- times


def test_times_reach_each_region_or_are_0_or_are_not_used(tmp_path):
    data = make_several(make_data(tmp_path), times=True)
    texts = caption_store(data, PROCESSOR)
    regions = RegionStore(data.regions)
    images = texts.images_in(regions, np.arange(texts.num_groups))
    assert images.times.max() == 7.5
    for reader in (ImageReader(regions, PROCESSOR.tags, 10, times=used) for used in (True, False)):
        for given in (images, replace(images, times=None)):
            for number, prefix in enumerate(reader.prefixes(given)):
                wanted = 2.5 * prefix.image_index if given.times is not None else 0 * prefix.image_index
                assert prefix.times is None if not reader.times else prefix.times.tolist() == wanted.tolist(), number


def test_a_batch_has_times_if_its_prefixes_do():
    regions = [make_regions(seed, count=2) for seed in range(2)]
    timed = make_prefix(join_images(regions, [0, 2.5]), PROCESSOR.tags)
    example = Example(source="", objective="", prefix=timed, texts=[])
    batch = collate([example] * 2, SHAPE)
    assert batch.region_times.tolist() == [0, 0, 2.5, 2.5] * 2 and batch.region_times.dtype == torch.float32
    assert batch.to(torch.device("meta")).region_times.device.type == "meta"
    without = replace(example, prefix=replace(timed, times=None))
    assert collate([without], SHAPE).region_times is None and collate([], SHAPE).region_times is None
    with pytest.raises(AssertionError, match="times are missing in some"):
        collate([example, without], SHAPE)


def test_times_change_nothing_at_first_and_matter_once_learned():
    model, timed = (make_model(vocabulary=len(TOKENIZER), times=times) for times in (False, True))
    timed.load_state_dict(model.state_dict(), strict=False)
    regions = [make_regions(seed, count=2) for seed in range(2)]
    early, late, none = (make_prefix(join_images(regions, t), PROCESSOR.tags) for t in ([0, 1], [0, 9], None))
    [wanted] = rows_of(model, none)
    assert all(torch.equal(rows_of(timed, prefix)[0], wanted) for prefix in (early, late, none))
    batch = collate([Example(source="", objective="", prefix=late, texts=[])], SHAPE)
    timed(batch)[:, 0].sum().backward()
    assert timed.regions.time.weight.grad.any() and not timed.regions.time.weight.any()
    with torch.no_grad():
        timed.regions.time.weight.normal_()
    zero = make_prefix(join_images(regions, [0, 0]), PROCESSOR.tags)
    assert torch.equal(rows_of(timed, zero)[0], rows_of(timed, none)[0]), "missing times mean 0"
    assert not torch.allclose(rows_of(timed, early)[0], rows_of(timed, late)[0], atol=1e-3)


# --- runs


@pytest.mark.parametrize("task", ["pretrain", "caption", "vqa"])
def test_a_run_trains_on_several_images_with_loader_processes_as_without(data, tmp_path, task):
    changes = {"annotations": [], "answers": 2} if task == "vqa" else {}
    runs = [
        run_training(make_config(data, tmp_path / str(workers), task, training={"workers": workers}, **changes))
        for workers in (0, 2)
    ]
    weights = [(latest_checkpoint(run) / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    everything = [str(image) for image in range(1, 7)]
    assert trained_images(everything, read_trained_on(runs[0])) == everything
