import numpy as np
import torch

from dimvl.data.examples import BatchShape, Example, Text, collate, keyed_generator
from dimvl.data.prefixes import best_regions, make_prefix
from dimvl.data.targets import (
    Answers,
    AnswerTargets,
    HiddenObjects,
    Matches,
    MatchTargets,
    ObjectTargets,
    TargetSpec,
    WordTargets,
)
from dimvl.tasks.base import masked_text, plain_text, seq2seq_text
from tests.factories import FEATURE_WIDTH, TEXTS, make_processor, make_regions

PROCESSOR = make_processor()
TOKENIZER = PROCESSOR.tokenizer
SHAPE = BatchShape(
    objectives={
        "masked": TargetSpec(WordTargets),
        "words": TargetSpec(WordTargets),
        "objects": TargetSpec(ObjectTargets, 4),
        "pairs": TargetSpec(MatchTargets),
        "answers": TargetSpec(AnswerTargets, 2),
    },
    text_start=PROCESSOR.text_start,
    feature_width=FEATURE_WIDTH,
)


def words(number):
    return np.array(TOKENIZER.encode(TEXTS[number]), dtype=np.int64)


def prefix(seed, regions=3):
    return make_prefix(make_regions(seed, count=regions), PROCESSOR.tags)


def examples():
    """One of each objective; one without regions, two with two texts, one without any."""
    random = np.random.default_rng(0)
    captions = [seq2seq_text(words(n), random, TOKENIZER, "causal", 0.5) for n in (0, 1)]
    objects = make_regions(3, count=5)
    return [
        Example(
            source="m",
            objective="masked",
            prefix=prefix(1, 0),
            texts=[masked_text(words(2), random, TOKENIZER, 0.4, False)],
        ),
        Example(source="s", objective="words", prefix=prefix(2), texts=captions, seq2seq=True),
        Example(
            source="o",
            objective="objects",
            prefix=make_prefix(objects, PROCESSOR.tags, np.arange(5) == 2),
            texts=[plain_text(words(1), TOKENIZER)],
            target=HiddenObjects(np.array([2]), np.array([[0.5, 0.25, 0.0, 0.25]])),
        ),
        Example(
            source="p",
            objective="pairs",
            prefix=prefix(4, 1),
            texts=[plain_text(words(0), TOKENIZER)],
            target=Matches([0.0]),
        ),
        Example(
            source="a",
            objective="answers",
            prefix=prefix(5, 2),
            texts=[plain_text(words(1), TOKENIZER), plain_text(words(0), TOKENIZER)],
            seq2seq=True,
            target=Answers(np.array([[0.0, 0.6], [1.0, 0.0]])),
        ),
        Example(source="e", objective="words", prefix=prefix(6, 1), texts=[], seq2seq=True),
    ]


def token_ids_by_row(batch):
    """Token id of each row, -1 for regions."""
    return torch.cat([torch.full((batch.layout.num_vision,), -1), batch.token_ids])


def test_rows_stand_as_regions_then_contexts_then_texts_each_in_the_order_of_the_examples():
    given = examples()
    batch = collate(given, SHAPE)
    features = np.concatenate([example.prefix.features for example in given]).astype(np.float32)
    assert torch.equal(batch.region_features, torch.from_numpy(features))
    pieces = [d.prefix.context for d in given] + [text.token_ids for d in given for text in d.texts]
    assert batch.token_ids.tolist() == np.concatenate(pieces).tolist()
    contexts = sum(len(example.prefix.context) for example in given)
    assert batch.segments.tolist() == [0] * contexts + [1] * (len(batch.token_ids) - contexts)
    assert batch.layout.num_rows == len(features) + len(batch.token_ids)
    assert batch.layout.text_prefix.tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert batch.region_hidden.nonzero().flatten().tolist() == [0 + 3 + 2]
    assert list(batch.sources) == ["m", "s", "o", "p", "a", "e"]


def test_geometry_is_seven_fractions_of_each_box():
    regions = make_regions(1, count=2)
    x1, y1, x2, y2 = regions.boxes.T
    wanted = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], axis=1)
    example = Example(source="", objective="", prefix=make_prefix(regions, PROCESSOR.tags), texts=[])
    torch.testing.assert_close(collate([example], SHAPE).region_geometry, torch.from_numpy(wanted))


def test_masked_words_restore_the_text_at_their_rows():
    batch = collate(examples(), SHAPE)
    rows, labels = batch.targets["masked"].rows, batch.targets["masked"].labels
    restored = token_ids_by_row(batch)
    restored[rows] = labels
    start = batch.layout.text_starts[0]
    assert TOKENIZER.decode(restored[start : start + batch.layout.text_lengths[0]].tolist()) == TEXTS[2]
    assert len(rows) == 2  # 40% of six words


def test_every_row_of_a_causal_text_has_the_next_token_as_its_label():
    batch = collate(examples(), SHAPE)
    rows, labels = batch.targets["words"].rows, batch.targets["words"].labels
    by_row = token_ids_by_row(batch)
    ends = set((batch.layout.text_starts + batch.layout.text_lengths - 1).tolist())
    assert len(rows) == len(words(0)) + len(words(1)) + 2
    assert by_row[rows[0]] == TOKENIZER.cls
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        assert label == (TOKENIZER.sep if row in ends else by_row[row + 1])


def test_object_match_and_answer_targets_point_at_their_rows():
    batch = collate(examples(), SHAPE)
    by_row, layout = token_ids_by_row(batch), batch.layout
    objects, pairs, answers = (batch.targets[name] for name in ("objects", "pairs", "answers"))
    wanted = torch.from_numpy(make_regions(3, count=5).features[[2]])
    assert torch.equal(batch.region_features[objects.rows], wanted)
    assert objects.class_probabilities.tolist() == [[0.5, 0.25, 0.0, 0.25]]
    assert pairs.rows.tolist() == [layout.context_starts[3]] and pairs.labels.tolist() == [0.0]
    assert by_row[pairs.rows].tolist() == [TOKENIZER.cls]
    assert by_row[answers.rows].tolist() == [TOKENIZER.sep] * 2
    assert answers.rows.tolist() == [layout.num_rows - 1 - len(words(0)) - 1, layout.num_rows - 1]
    torch.testing.assert_close(answers.scores, torch.tensor([[0.0, 0.6], [1.0, 0.0]]))
    assert batch.counts() == {"masked": 2, "words": 20 - 3, "objects": 1, "pairs": 1, "answers": 2}


def test_text_does_not_move_when_tags_come_and_go():
    texts = [plain_text(words(0), TOKENIZER)]
    regions = make_regions(1)
    hidden = make_prefix(regions, PROCESSOR.tags, np.ones(4, dtype=bool))
    shown = make_prefix(regions, PROCESSOR.tags)
    assert len(shown.context) > len(hidden.context) == 2
    placed = []
    for one in (shown, hidden):
        batch = collate([Example(source="", objective="", prefix=one, texts=texts)], SHAPE)
        context = len(one.context)
        assert batch.positions[:context].tolist() == list(range(context))
        placed.append(batch.positions[context:].tolist())
    assert placed[0] == placed[1]


def test_the_first_word_has_the_same_position_with_and_without_a_start_row():
    random = np.random.default_rng(0)
    causal, masked = (seq2seq_text(words(0), random, TOKENIZER, variant, 0.5) for variant in ("causal", "masked"))
    batch = collate([Example(source="", objective="", prefix=prefix(1), texts=[causal, masked], seq2seq=True)], SHAPE)
    text = batch.positions[batch.segments == 1].tolist()
    start = PROCESSOR.text_start
    assert start >= len(prefix(1).context)
    assert text[: len(words(0)) + 1] == list(range(start, start + len(words(0)) + 1))
    assert text[len(words(0)) + 1 :] == list(range(start + 1, start + len(words(0)) + 2))


def test_the_longest_text_has_a_position_and_none_is_left_over():
    long = np.resize(words(0), PROCESSOR.text_tokens)
    batch = collate([Example(source="", objective="", prefix=prefix(1), texts=[plain_text(long, TOKENIZER)])], SHAPE)
    assert batch.positions.max() == PROCESSOR.max_positions - 1


def test_batches_of_no_example_have_every_objective_with_no_target():
    batch = collate([], SHAPE)
    assert batch.layout.num_rows == 0 and batch.region_features.shape == (0, FEATURE_WIDTH)
    assert batch.counts() == dict.fromkeys(SHAPE.objectives, 0)
    assert batch.targets["objects"].class_probabilities.shape == (0, 4)
    assert batch.targets["answers"].scores.shape == (0, 2)


def test_a_batch_keeps_its_types_when_no_example_has_an_objective():
    full, bare = collate(examples(), SHAPE), collate(examples()[-1:], SHAPE)
    for name, target in full.targets.items():
        assert [part.dtype for part in vars(target).values()] == [
            part.dtype for part in vars(bare.targets[name]).values()
        ]


def test_the_best_regions_are_the_first():
    regions = make_regions(1, count=4)
    best = best_regions(regions, 2)
    assert np.array_equal(best.boxes, regions.boxes[:2]) and np.array_equal(best.class_ids, regions.class_ids[:2])
    assert len(best_regions(regions, 0)) == 0 and len(best_regions(regions, 9)) == 4


def test_a_keyed_generator_depends_on_every_part_of_its_key():
    def draw(*key):
        return keyed_generator(*key).integers(2**62)

    assert draw(1, "order", 2) == draw(1, "order", 2)
    assert len({draw(1, "a", 2), draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3), draw(12, "a"), draw(1, "a")}) == 6


def test_a_text_without_targets_is_legal():
    text = Text(token_ids=words(0), places=np.zeros(0, dtype=np.int64), labels=np.zeros(0, dtype=np.int64))
    batch = collate([Example(source="", objective="masked", prefix=prefix(1), texts=[text])], SHAPE)
    assert batch.counts()["masked"] == 0
