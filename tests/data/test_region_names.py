"""The names of regions: rows that tags take, words in the rows of regions, and examples that go without."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimvl.config import InputsConfig, validate
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import ImageReader, PrefixImages, join_images, make_prefix, names_of
from dimvl.data.tags import TagWriter
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.base import ConceptDropout
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.training import CaptionSource
from dimvl.tasks.pretraining.config import ObjectivesConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainSource
from tests.factories import ATTRIBUTES, CLASSES, FEATURE_WIDTH, make_extractor, make_processor, make_regions, make_store
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data, make_several

NAMES = ("star", "red star", "small star", "square", "starcircle", "red", "circle star square", "  ")
TOKENIZER = Tokenizer.train(["small red circle", "blue square star"], 200)
PROCESSOR = make_processor(concepts="both")
SHAPE = BatchShape(objectives={}, text_start=PROCESSOR.text_start, feature_width=FEATURE_WIDTH)


def named(generator, regions, classes=2, attributes=3):
    """Random names of regions; some have none, and scores are often equal."""
    columns = []
    for width in (classes, attributes):
        columns.append(generator.integers(-1, len(NAMES), (regions, width)).astype(np.int16))
        columns.append(generator.choice([0.0, 0.125, 0.25, 0.5, 0.75], (regions, width)).astype(np.float16))
    return columns


# --- rows


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    rooms=st.lists(st.integers(1, 25), min_size=5, max_size=5),
    kind=st.sampled_from(["phrases", "concepts", "classes are concepts"]),
    columns=st.sampled_from([(2, 3), (1, 1), (0, 2), (2, 0), (0, 0)]),
    seed=st.integers(0, 10_000),
)
def test_tags_counted_at_once_are_as_long_as_those_written_and_never_shorter_if_regions_are_hidden(
    counts, rooms, kind, columns, seed
):
    generator = np.random.default_rng(seed)
    names = (NAMES, () if kind == "classes are concepts" else NAMES)
    images = [named(generator, count, *columns) for count in counts]
    if kind == "classes are concepts":
        images = [[*image[:2], image[2] * 0 - 1, image[3]] for image in images]
    together = [np.concatenate(parts) for parts in zip(*images, strict=True)]
    room = np.array(rooms[: len(counts)])
    writers = [TagWriter(TOKENIZER, *names, 0.25, most, concepts=kind != "phrases") for most in room.tolist()]
    exact, most = (
        writers[0].lengths(together, np.array(counts), room, np.full(len(counts), may_hide))
        for may_hide in (False, True)
    )
    written = [len(writer.context([image])) - 2 for writer, image in zip(writers, images, strict=True)]
    assert exact.tolist() == written and (most >= exact).all()
    for image, writer, bound in zip(images, writers, most.tolist(), strict=True):
        with_class = image[0][:, 0] >= 0 if columns[0] else np.zeros(len(image[0]), bool)
        for shown in (with_class, ~with_class, generator.random(len(image[0])) < 0.6):
            assert len(writer.context([[part[shown] for part in image]])) - 2 <= bound <= writer.max_tokens


def test_tags_of_the_same_words_count_once_and_in_another_order_twice():
    writer = TagWriter(TOKENIZER, NAMES, NAMES, 0.25, 20)
    star, red_star, red = (NAMES.index(name) for name in ("star", "red star", "red"))
    for classes, attributes, pieces in (([star, red], [red, star], 4), ([star, red_star, star], [red, -1, -1], 3)):
        names = np.array(classes)[:, None], np.array(attributes)[:, None]
        image = [part for ids in names for part in (ids, np.full(ids.shape, 0.5))]
        assert len(writer.context([image])) - 2 == pieces
        assert writer.lengths(image, np.array([len(classes)]), np.array([20]), np.array([False])).tolist() == [pieces]


@pytest.mark.parametrize("feature_dtype", ["float16", "int8"])
def test_rows_of_prefixes_are_those_that_they_have_whichever_images_share_them(tmp_path, feature_dtype):
    store = RegionStore(make_store(tmp_path / "store", 8, empty=3, feature_dtype=feature_dtype), check=True)
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 5, 60)
    images = PrefixImages(generator.integers(0, 8, counts.sum()), counts)
    untagged = generator.random(60) < 0.3
    for tokens in (1, 3, 7, 30):
        reader = ImageReader(store, make_processor(concept_tokens=tokens).tags, 3)
        found = [replace(regions, tags=not out) for regions, out in zip(reader.read(images), untagged, strict=True)]
        wanted = [len(regions) + len(reader.prefix(regions).context) for regions in found]
        assert reader.rows(images, untagged).tolist() == wanted


def test_a_reader_of_the_whole_budget_counts_as_version_0_1_did(tmp_path):
    store = RegionStore(make_store(tmp_path / "store"))
    images = PrefixImages(np.arange(6), np.ones(6, dtype=int))
    reader = PROCESSOR.reader(store, whole_budget=True)
    assert (reader.rows(images) - reader.num_regions(images) == PROCESSOR.concept_tokens + 2).all()


def sources(data, concepts="both", dropout=0.0, **inputs):
    processor = make_processor(concepts=concepts, **inputs)
    captions, reader = caption_store(data, processor), image_reader(data, processor)
    found = [
        CaptionSource(captions, reader, Seq2seqConfig(captions=9), processor.tokenizer, 1),
        PretrainSource(captions, reader, ObjectivesConfig(), Seq2seqConfig(captions=9), processor.tokenizer, 1),
    ]
    for source in found if dropout else ():
        source.dropout = ConceptDropout(dropout, 1)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_several(make_data(tmp_path_factory.mktemp("data"), 8, empty=3), 8)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_image_with_all_its_captions_costs_the_rows_that_it_has(data, dropout):
    captions, _ = sources(data, dropout=dropout, concept_tokens=9)
    for epoch in range(3):
        rows = [collate([captions.build(epoch, index)], SHAPE).layout.num_rows for index in range(len(captions))]
        assert all_costs(captions, epoch).tolist() == rows


@pytest.mark.parametrize("tokens", [3, 9])
def test_costs_bound_the_rows_of_examples_of_several_images_with_hidden_regions(data, tokens):
    _, source = sources(data, dropout=0.3, concept_tokens=tokens)
    for epoch in range(8):
        rows = [collate([source.build(epoch, index)], SHAPE).layout.num_rows for index in range(len(source))]
        assert (all_costs(source, epoch) >= rows).all()


def test_costs_bound_the_rows_where_hiding_a_region_gives_tags_to_others(tmp_path):
    data, extractor = make_data(tmp_path, 8), replace(make_extractor(), parts={"called": "c" * 64})
    with RegionStoreWriter(tmp_path / "named", extractor) as writer:
        for number in range(1, 9):
            regions = make_regions(number, str(number), 4)
            regions.class_ids[1] = -1  # the only concepts of the image, if it is visible
            writer.add(regions)
    processor = replace(make_processor(), extractor=extractor)
    reader = processor.reader(RegionStore(tmp_path / "named"))
    hiding = ObjectivesConfig(shares=SharesConfig(masked_lm=0, seq2seq_lm=0, masked_object=1, matching=0))
    arguments = (caption_store(data, processor), reader, hiding, Seq2seqConfig(), processor.tokenizer, 1)
    source, more = PretrainSource(*arguments), 0
    for epoch in range(4):
        prefixes = [source.build(epoch, index).prefix for index in range(8)]
        rows = np.array([len(prefix.features) + len(prefix.context) for prefix in prefixes])
        assert (source.prefix_rows(epoch, slice(0, 8), np.ones(8, bool)) >= rows).all()
        assert (
            all_costs(source, epoch) >= rows + [len(source.build(epoch, i).texts[0].token_ids) for i in range(8)]
        ).all()
        more += (source.prefix_rows(epoch, slice(0, 8)) < rows).sum()
    assert more > 3, "hidden regions would have been counted short"


# --- words of regions


def words_of(processor, regions, shown=None):
    found = processor.tags.words(names_of(regions), np.ones(len(regions), bool) if shown is None else shown)
    ends = np.cumsum(found.counts)
    return [
        dict(zip(found.token_ids[start:end].tolist(), found.weights[start:end].tolist(), strict=True))
        for start, end in zip(ends - found.counts, ends, strict=True)
    ]


def test_words_weigh_by_their_scores_and_a_word_of_several_pieces_is_their_mean():
    tokenizer = make_processor().tokenizer
    long = tokenizer.encode("starcircle")
    assert len(long) > 1
    writer = TagWriter(tokenizer, ("star", "starcircle"), ("red", "big"), 0.25, 0, region_words=True)
    image = (
        np.array([[0, 1], [1, -1], [-1, -1], [0, -1]], np.int16),
        np.array([[0.5, 0.25], [0.75, 0.9], [0.9, 0.9], [0.125, 0]], np.float16),
        np.array([[0], [-1], [-1], [0]], np.int16),
        np.array([[0.25], [0.9], [0.9], [0.125]], np.float16),
    )
    found = writer.words(image, np.ones(4, bool))
    star, red = tokenizer.encode("star")[0], tokenizer.encode("red")[0]
    assert found.token_ids.tolist() == [star, *long, red, *long]
    each = [0.25 / len(long)] * len(long), [1 / len(long)] * len(long)
    np.testing.assert_allclose(found.weights, [0.5, *each[0], 0.25, *each[1]], rtol=1e-6)
    assert found.counts.tolist() == [2 + len(long), len(long), 0, 0], "no name, or none with a score high enough"
    assert (found.token_ids.dtype, found.weights.dtype, found.counts.dtype) == (np.int64, np.float32, np.int64)


def test_a_score_of_just_the_limit_gives_a_word_as_it_gives_a_tag():
    writer = TagWriter(PROCESSOR.tokenizer, CLASSES, ATTRIBUTES, 0.4, 9, region_words=True)
    image = [np.array([[2]], np.int16), np.array([[0.4]], np.float16), *np.zeros((2, 1, 0), np.int16)]
    assert len(writer.context([image])) == 3 and writer.words(image, np.ones(1, bool)).counts.tolist() == [1]


def test_where_concepts_are_not_in_regions_there_are_no_words():
    for concepts in ("none", "text"):
        prefix = make_prefix(make_regions(1), make_processor(concepts=concepts).tags)
        assert prefix.words is None and (len(prefix.context) > 2) == (concepts == "text")
        batch = collate([Example(source="", objective="", prefix=prefix, texts=[])], SHAPE)
        assert batch.region_word_ids is batch.region_word_weights is batch.region_word_offsets is None
    assert len(make_prefix(make_regions(1), make_processor(concepts="region").tags).context) == 2


def test_words_go_with_their_region_in_any_order_and_beside_any_other_image():
    regions, processor = make_regions(1, count=5), make_processor(concepts="region")
    order = np.array([3, 0, 4, 1, 2])
    shuffled = replace(regions, **{name: array[order] for name, array in regions.arrays.items()})
    alone = words_of(processor, regions)
    assert words_of(processor, shuffled) == [alone[place] for place in order]
    joined = join_images([make_regions(2, count=3), regions, make_regions(3, count=0)])
    assert words_of(processor, joined)[3:] == alone
    examples = [
        Example(source="", objective="", prefix=make_prefix(one, processor.tags), texts=[], seq2seq=True)
        for one in (joined, make_regions(4, count=0), regions)
    ]
    batch = collate(examples, SHAPE)
    offsets = batch.region_word_offsets.tolist()
    assert len(offsets) == batch.layout.num_vision + 1 == 8 + 0 + 5 + 1
    last = slice(offsets[-6], offsets[-1])
    assert batch.region_word_ids[last].tolist() == [token for region in alone for token in region]


def test_a_hidden_region_has_no_words_and_the_others_keep_theirs():
    regions, processor = make_regions(1, count=5), make_processor(concepts="both")
    hidden = np.array([True, False, False, True, False])
    prefix, whole = (make_prefix(regions, processor.tags, some) for some in (hidden, None))
    assert (prefix.words.counts == np.where(hidden, 0, whole.words.counts)).all() and whole.words.counts.all()
    kept = np.repeat(~hidden, whole.words.counts)
    assert prefix.words.token_ids.tolist() == whole.words.token_ids[kept].tolist()
    assert prefix.words.weights.tolist() == whole.words.weights[kept].tolist()


# --- examples without


def test_concepts_are_left_out_by_seed_epoch_and_example_alone_and_each_place_by_itself(data):
    dropout = ConceptDropout(0.3, 5)
    whole = np.stack([dropout.without(epoch, slice(0, 2000)) for epoch in range(3)])
    assert np.abs(whole.mean(axis=(0, 1)) - 0.3).max() < 0.024  # four standard deviations
    assert abs((whole[..., 0] & whole[..., 1]).mean() - 0.09) < 0.015
    assert (whole[0] != whole[1]).any() and (ConceptDropout(0.3, 6).without(0, slice(0, 2000)) != whole[0]).any()
    for epoch, start in ((2, 7), (0, 1999), (1, 3), (1, 0)):
        assert (dropout.without(epoch, slice(start, start + 1)) == whole[epoch, start : start + 1]).all()


def test_examples_lose_their_tags_or_words_as_drawn_whichever_are_built_together(data):
    for source in sources(data, dropout=0.5):
        plain = sources(data)[isinstance(source, PretrainSource)]
        seen = set()
        for epoch in range(4):
            drawn = source.dropout.without(epoch, slice(0, len(source)))
            order = np.random.default_rng(epoch).permutation(len(source))
            for index, example in zip(order, source.build_all(epoch, order), strict=True):
                whole = plain.build(epoch, int(index))
                untagged, unnamed = drawn[index].tolist()
                assert len(example.prefix.context) == (2 if untagged else len(whole.prefix.context))
                assert example.prefix.words.counts.tolist() == (whole.prefix.words.counts * (not unnamed)).tolist()
                assert example.objective == whole.objective and len(example.texts) == len(whole.texts)
                seen.add((untagged, unnamed, bool(whole.prefix.words.counts.any())))
        assert len({kind[:2] for kind in seen if kind[2]}) == 4


# --- keys of version 0.1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"tag_tokens": 0, "tag_score": 0.3}, {"concepts": "none"}),
        ({"tag_tokens": 22, "tag_score": 0.4}, {"concepts": "text", "concept_tokens": 22, "concept_score": 0.4}),
        ({"tag_score": 0.5}, {"concepts": "text", "concept_tokens": 20, "concept_score": 0.5}),
    ],
)
def test_keys_of_version_0_1_mean_what_they_did(old, new):
    assert InputsConfig(**old) == InputsConfig(**new)


def test_keys_of_version_0_1_beside_present_ones_are_refused_with_their_new_names():
    for old in ({"tag_tokens": 0}, {"tag_score": 0.3}):
        with pytest.raises(UserError, match=r"tag_tokens is now concept_tokens .* rename them"):
            validate(InputsConfig, {"concepts": "region", **old}, "run.yaml")
