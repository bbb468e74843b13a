import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import make_prefix
from dimvl.decoding import CachedDecoder, DecodingOptions, beam_search, caption_prefixes, sample
from dimvl.tasks.base import plain_text
from tests.factories import FEATURE_WIDTH, make_model, make_processor, make_regions

END, VOCABULARY = 0, 4
PENALTIES = (0.0, 1.0, 2.0, -0.5)


class Table:
    """A stand-in for a model: random but fixed next-word log-probabilities for each (image, text)."""

    def __init__(self, seed, images=1, sharpness=1.5, vocabulary=VOCABULARY):
        self.seeds = [[seed, image] for image in range(images)] if isinstance(seed, int) else seed
        self.sharpness, self.vocabulary = sharpness, vocabulary
        self.calls, self.known = 0, {}

    def row(self, image, text):
        key = (*self.seeds[image], len(text), *text)
        if key not in self.known:
            drawn = np.random.default_rng(key).normal(size=self.vocabulary)
            self.known[key] = torch.from_numpy(drawn * self.sharpness).log_softmax(0)
        return self.known[key]

    def start(self):
        self.calls += 1
        self.texts, self.live = [[()] for _ in self.seeds], list(range(len(self.seeds)))
        return self._scores()

    def advance(self, parents, tokens):
        self.calls += 1
        self.texts = [
            [(*texts[parent], token) for parent, token in zip(*pair, strict=True)]
            for texts, *pair in zip(self.texts, parents.tolist(), tokens.tolist(), strict=True)
        ]
        return self._scores() if self.texts else torch.zeros(*tokens.shape, self.vocabulary)

    def keep(self, images):
        self.texts, self.live = ([kept[place] for place in images.tolist()] for kept in (self.texts, self.live))

    def _scores(self):
        rows = [
            torch.stack([self.row(i, text) for text in texts]) for i, texts in zip(self.live, self.texts, strict=True)
        ]
        return torch.stack(rows).float()


def has_repeated_ngram(text, size):
    grams = [text[start : start + size] for start in range(len(text) - size + 1)]
    return size > 0 and len(set(grams)) < len(grams)


def all_texts(table, image, options):
    """(text, log-probability, score) of every possible text, best first."""
    found = []
    words = range(1, table.vocabulary)
    for length in range(options.max_tokens):
        for text in itertools.product(words, repeat=length):
            if not has_repeated_ngram(text, options.block_ngrams):
                total = sum(table.row(image, text[:n])[(*text, END)[n]].item() for n in range(length + 1))
                found.append((text, total, total / (length + 1) ** options.length_penalty))
    return sorted(found, key=lambda item: -item[2])


def plain_beam_search(table, image, options):
    """The same search for one image, without tensors, batches or early stopping."""
    live, finished = [((), 0.0)], []
    for length in range(1, options.max_tokens + 1):
        rows = [(text, total, table.row(image, text).tolist()) for text, total in live]
        finished += [
            (text, total + row[END], (total + row[END]) / length**options.length_penalty) for text, total, row in rows
        ]
        grown = [((*text, word), total + row[word]) for text, total, row in rows for word in range(1, table.vocabulary)]
        grown = [item for item in grown if not has_repeated_ngram(item[0], options.block_ngrams)]
        live = sorted(grown, key=lambda item: -item[1])[: options.beams]
    return sorted(finished, key=lambda item: -item[2])[: options.beams]


def check_equal(found, wanted):
    assert [h.token_ids for h in found] == [text for text, *_ in wanted]
    # tables are float64, the search sums in float32
    assert [h.log_probability for h in found] == pytest.approx([total for _, total, _ in wanted], abs=1e-5)
    assert [h.score for h in found] == pytest.approx([score for *_, score in wanted], abs=1e-5)


# --- the search on its own


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("blocked", [0, 1, 2])
def test_an_exhaustive_beam_search_equals_brute_force(penalty, blocked):
    options = DecodingOptions(beams=40, max_tokens=4, length_penalty=penalty, block_ngrams=blocked)
    for seed in range(5):
        table = Table(seed, 2)
        for image, found in enumerate(beam_search(table, END, options)):
            check_equal(found, all_texts(table, image, options)[:40])


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("blocked", [0, 2])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_small_beams_equal_a_plain_beam_search(penalty, blocked, beams):
    options = DecodingOptions(beams=beams, max_tokens=6, length_penalty=penalty, block_ngrams=blocked)
    for seed in range(6):
        table = Table(seed, 3)
        for image, found in enumerate(beam_search(table, END, options)):
            check_equal(found, plain_beam_search(table, image, options))


def test_images_finish_at_different_times_and_do_not_affect_each_other():
    seeds = [[seed, image] for seed in range(4) for image in range(2)]
    options = DecodingOptions(beams=2, max_tokens=8)
    together = beam_search(Table(seeds, sharpness=2.5), END, options)
    alone = [beam_search(Table([seed], sharpness=2.5), END, options)[0] for seed in seeds]
    assert together == alone and together[::-1] == beam_search(Table(seeds[::-1], sharpness=2.5), END, options)
    assert len({len(found[0].token_ids) for found in together}) > 2


@pytest.mark.parametrize("penalty", PENALTIES)
def test_asking_for_fewer_texts_returns_the_first_ones_in_fewer_steps(penalty):
    steps = Counter()
    for seed in range(8):
        options = DecodingOptions(beams=3, max_tokens=12, length_penalty=penalty)
        every = Table(seed, 4, sharpness=2.5)
        whole = beam_search(every, END, options)
        for wanted in (1, 2):
            few = Table(seed, 4, sharpness=2.5)
            assert beam_search(few, END, options, wanted=wanted) == [found[:wanted] for found in whole]
            assert few.calls <= every.calls
            steps[wanted] += few.calls
        steps["all"] += every.calls
    assert steps[1] < steps["all"] or penalty in (2.0, -0.5), "these two favour long or short texts too much"


def test_finished_images_leave_the_batch():
    class Watched(Table):
        """Counts images in each step."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.sizes = []

        def _scores(self):
            self.sizes.append(len(self.texts))
            return super()._scores()

    table = Watched(1, 12, sharpness=2.5)
    beam_search(table, END, DecodingOptions(beams=2, max_tokens=12, length_penalty=0.0))
    assert table.sizes[0] == 12 and table.sizes == sorted(table.sizes, reverse=True)
    assert 0 < table.sizes[-1] < 6 and len(set(table.sizes)) > 3


def test_a_rank_with_finished_images_takes_as_many_steps_as_the_others():
    asked = []
    table = Table(0, 3, sharpness=2.5)
    options = DecodingOptions(beams=2, max_tokens=20, length_penalty=0.0)
    found = beam_search(table, END, options, lambda done: asked.append(done))
    assert table.calls == 20 and asked[-1] and not asked[0] and not table.texts
    assert found == beam_search(Table(0, 3, sharpness=2.5), END, options)


def test_the_search_stops_as_soon_as_no_text_can_improve():
    class Certain(Table):
        """Writes 1, 2 and the end for every image."""

        def row(self, image, text):
            return torch.log_softmax(torch.eye(VOCABULARY)[(1, 2, END, END)[min(len(text), 3)]] * 50, 0)

    for beams, most in ((1, 3), (2, 6)):
        table = Certain(0)
        found = beam_search(table, END, DecodingOptions(beams=beams, max_tokens=30, length_penalty=0.0))
        assert found[0][0].token_ids == (1, 2) and table.calls <= most


def test_greedy_search_takes_the_likeliest_next_word():
    for seed in range(10):
        table, text = Table(seed, sharpness=3.0), ()
        options = DecodingOptions(beams=1, max_tokens=6, length_penalty=0.0)
        [found] = beam_search(table, END, options)[0]
        best = max(plain_beam_search(table, 0, options), key=lambda item: item[2])
        assert found.token_ids == best[0]
        while len(text) < len(found.token_ids):
            text = (*text, 1 + int(table.row(0, text)[1:].argmax()))
        assert found.token_ids == text, "every word is the likeliest one"


def test_no_blocked_ngram_occurs_twice_and_no_text_is_longer_than_allowed():
    class Stubborn(Table):
        """Would repeat 1 2 1 2 ... forever."""

        def row(self, image, text):
            return torch.log_softmax(torch.eye(VOCABULARY)[1 + len(text) % 2] * 8, 0)

    for size in (1, 2, 3):
        for found in beam_search(Stubborn(0), END, DecodingOptions(beams=3, max_tokens=9, block_ngrams=size))[0]:
            assert not has_repeated_ngram(found.token_ids, size) and len(found.token_ids) < 9
    [found] = beam_search(Stubborn(0), END, DecodingOptions(beams=1, max_tokens=9, length_penalty=2.0))[0]
    assert found.token_ids == (1, 2) * 4, "only the end is allowed in the last place"


def test_a_longer_text_wins_only_through_the_length_penalty():
    class Two(Table):
        """Ends at once with probability .6; otherwise writes 1 and almost surely ends."""

        def row(self, image, text):
            return torch.tensor([0.6, 0.4, 1e-9, 1e-9] if not text else [1 - 3e-9, 1e-9, 1e-9, 1e-9]).log()

    texts = {
        penalty: beam_search(Two(0), END, DecodingOptions(beams=2, max_tokens=5, length_penalty=penalty))[0][
            0
        ].token_ids
        for penalty in (0.0, 1.0)
    }
    assert texts == {0.0: (), 1.0: (1,)}


def uniform(images, samples, longest, seed=0):
    return torch.rand(images, samples, longest, generator=torch.Generator().manual_seed(seed))


def all_samples(table, longest):
    """Log-probability of every text that can be sampled: ended by END, or cut off in the last place."""
    found = {}
    for length in range(1, longest + 1):
        for words in itertools.product(range(1, table.vocabulary), repeat=length - 1):
            before = sum(table.row(0, words[:n])[word].item() for n, word in enumerate(words))
            last = range(table.vocabulary) if length == longest else [END]
            found |= {(*words, word): before + table.row(0, words)[word].item() for word in last}
    assert sum(map(math.exp, found.values())) == pytest.approx(1)
    return found


def test_samples_follow_the_models_distribution_and_carry_its_log_probabilities():
    table = Table([[3, 0]] * 1000, sharpness=1.0, vocabulary=3)
    draws = [draw for texts in sample(table, END, uniform(1000, 4, 3)) for draw in texts]
    known = all_samples(table, 3)
    counts = Counter(draw.token_ids for draw in draws)
    assert counts.keys() <= known.keys() and len(draws) == 4000
    for draw in draws:
        assert draw.log_probability == pytest.approx(known[draw.token_ids], abs=1e-5)
    for text, total in known.items():
        share = math.exp(total)
        assert counts[text] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000)), text


class Fixed(Table):
    """Gives the same probabilities at each place."""

    def __init__(self, *probabilities):
        super().__init__(0, vocabulary=len(probabilities))
        self.logarithms = torch.tensor(probabilities, dtype=torch.float64).log()

    def row(self, seed, words):
        return self.logarithms


def test_a_nucleus_is_the_fewest_most_probable_words_with_its_share():
    probabilities = [0.1, 0.4, 0.05, 0.3, 0.15]
    for nucleus, allowed in (
        (0.3, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.71, [1, 3, 4]),
        (0.99, range(5)),
        (1.0, range(5)),
    ):
        draws = torch.linspace(0, 1 - 1e-6, 200).view(1, 200, 1)
        [found] = sample(Fixed(*probabilities), END, draws, nucleus=nucleus)
        counts, total = Counter(text.token_ids[0] for text in found), sum(probabilities[word] for word in allowed)
        assert counts.keys() == set(allowed), nucleus
        for text in found:
            share = probabilities[text.token_ids[0]] / total
            assert math.exp(text.log_probability) == pytest.approx(share, rel=1e-4)
            assert counts[text.token_ids[0]] / 200 == pytest.approx(share, abs=0.01), "evenly spread numbers"


def test_samples_depend_only_on_the_random_numbers():
    tables, draws = [[5, image] for image in range(6)], uniform(6, 3, 5)
    together = sample(Table(tables), END, draws)
    assert together == sample(Table(tables), END, draws) != sample(Table(tables), END, uniform(6, 3, 5, seed=1))
    for image in range(6):
        assert sample(Table(tables[image : image + 1]), END, draws[image : image + 1]) == together[image : image + 1]
        for number in range(3):
            [[alone]] = sample(Table([tables[image]]), END, draws[image : image + 1, number : number + 1])
            assert alone == together[image][number]


def test_a_rank_with_finished_samples_takes_as_many_steps_as_the_others():
    asked, table, draws = [], Table(0, 3, sharpness=2.5), uniform(3, 2, 20)
    found = sample(table, END, draws, lambda done: asked.append(done))
    assert table.calls == 20 and asked[-1] and not asked[0]
    assert found == sample(Table(0, 3, sharpness=2.5), END, draws)


def test_the_largest_and_the_smallest_random_number_pick_a_word_of_the_vocabulary():
    for number in (0.0, 1 - 2**-24):
        [[draw]] = sample(Table(0), END, torch.full((1, 1, 4), number))
        assert all(0 <= token < VOCABULARY for token in draw.token_ids)


# --- the model behind the search


def make_captioner(variant="causal"):
    processor = make_processor(variant=variant, captions=True, concepts="both")
    model = make_model(
        2,
        vocabulary=len(processor.tokenizer),
        word_head=True,
        max_positions=processor.max_positions,
        split=["qkv", "ffn"],
        region_words=True,
    )
    return model, processor


def make_prefixes(processor):
    """Different prefixes; those in the middle lack regions, context, or both."""
    prefixes = [
        make_prefix(make_regions(seed, count=count), processor.tags) for seed, count in enumerate([4, 0, 2, 1, 3])
    ]
    nothing = prefixes[1].context[:0]
    prefixes[2] = dataclass_replace(prefixes[2], context=nothing)
    prefixes[3] = dataclass_replace(make_prefix(make_regions(9, count=0), processor.tags), context=nothing)
    return prefixes


def dataclass_replace(prefix, **changes):
    return type(prefix)(**{**prefix.__dict__, **changes})


def prefix_batch(processor, prefixes, texts=()):
    shape = BatchShape(objectives={}, text_start=processor.text_start, feature_width=FEATURE_WIDTH)
    examples = [
        Example(source="", objective="", prefix=prefix, texts=list(text), seq2seq=True)
        for prefix, text in itertools.zip_longest(prefixes, texts, fillvalue=())
    ]
    return collate(examples, shape)


def uncached(model, processor, prefixes, texts):
    """Log-probabilities (B, V) of the word after each text, from a whole forward pass."""
    tokenizer = processor.tokenizer
    rows = []
    for text in texts:
        if processor.variant == "causal":
            given = plain_text(np.array([tokenizer.cls, *text[:-1]]), tokenizer)  # [SEP] in the last row is replaced
            ids = np.array([tokenizer.cls, *text])
            rows.append([type(given)(token_ids=ids, places=given.places, labels=given.labels, has_start=True)])
        else:
            given = plain_text(np.array(text, dtype=np.int64), tokenizer)
            ids = np.array([*text, tokenizer.mask])
            rows.append([type(given)(token_ids=ids, places=given.places, labels=given.labels)])
    batch = prefix_batch(processor, prefixes, rows)
    last = batch.layout.text_starts + batch.layout.text_lengths - 1
    never = list(tokenizer.special_ids - {tokenizer.sep})
    return model.word_head(model(batch)[last]).log_softmax(dim=-1).index_fill(-1, torch.tensor(never), float("-inf"))


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_cached_log_probabilities_equal_a_whole_forward_pass(variant):
    model, processor = make_captioner(variant)
    prefixes = make_prefixes(processor)
    generator = np.random.default_rng(1)
    with torch.inference_mode():
        decoder = CachedDecoder(model, processor, prefix_batch(processor, prefixes))
        scores, texts = decoder.start(), [[()] for _ in prefixes]
        beams = 1
        for _ in range(6):
            for beam in range(beams):
                wanted = uncached(model, processor, prefixes, [text[beam] for text in texts])
                torch.testing.assert_close(scores[:, beam], wanted, atol=1e-5, rtol=0)
            parents = generator.integers(0, beams, (len(prefixes), 3))
            tokens = generator.integers(5, len(processor.tokenizer), (len(prefixes), 3))
            texts = [
                [(*text[parent], token) for parent, token in zip(*pair, strict=True)]
                for text, *pair in zip(texts, parents.tolist(), tokens.tolist(), strict=True)
            ]
            scores, beams = decoder.advance(torch.from_numpy(parents), torch.from_numpy(tokens)), 3
            if len(texts[0][0]) == 3:  # some images finish
                left = torch.tensor([0, 2, 4])
                decoder.keep(left)
                scores, prefixes, texts = scores[left], prefixes[::2], texts[::2]
    words = scores[0].isfinite()
    assert (scores[0] - scores[1])[words].abs().max() > 0.01, "the prefix matters"


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_captions_do_not_depend_on_the_other_images_of_the_batch_or_their_order(variant):
    model, processor = make_captioner(variant)
    prefixes = make_prefixes(processor)
    options = DecodingOptions(beams=3, max_tokens=8)
    together = caption_prefixes(model, processor, prefix_batch(processor, prefixes), options)
    backwards = caption_prefixes(model, processor, prefix_batch(processor, prefixes[::-1]), options)[::-1]
    for number, prefix in enumerate(prefixes):
        [alone] = caption_prefixes(model, processor, prefix_batch(processor, [prefix]), options)
        for other in (together[number], backwards[number]):
            assert [h.token_ids for h in other] == [h.token_ids for h in alone]
            assert [h.score for h in other] == pytest.approx([h.score for h in alone], abs=1e-5)
    assert len({found[0].token_ids for found in together}) > 1


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_the_log_probability_of_a_caption_is_the_teacher_forced_one(variant):
    model, processor = make_captioner(variant)
    prefixes = make_prefixes(processor)
    found = caption_prefixes(
        model, processor, prefix_batch(processor, prefixes), DecodingOptions(beams=2, max_tokens=5)
    )
    for prefix, hypotheses in zip(prefixes, found, strict=True):
        for hypothesis in hypotheses:
            words = (*hypothesis.token_ids, processor.tokenizer.sep)
            with torch.inference_mode():
                steps = [
                    uncached(model, processor, [prefix], [words[:n]])[0, words[n]].item() for n in range(len(words))
                ]
            assert hypothesis.log_probability == pytest.approx(sum(steps), abs=1e-4)
            assert hypothesis.score == pytest.approx(sum(steps) / len(words), abs=1e-4)


def test_no_text_contains_a_special_token_however_likely():
    model, processor = make_captioner()
    special = processor.tokenizer.special_ids
    with torch.no_grad():
        model.word_head.decoder.bias[list(special - {processor.tokenizer.sep})] = 40
    batch = prefix_batch(processor, make_prefixes(processor))
    found = caption_prefixes(model, processor, batch, DecodingOptions(beams=3, max_tokens=5, length_penalty=3))
    texts = [hypothesis.token_ids for hypotheses in found for hypothesis in hypotheses]
    assert max(map(len, texts)) > 1 and not special & {token for text in texts for token in text}


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_the_longest_trained_text_can_be_decoded(variant):
    model, processor = make_captioner(variant)
    with torch.no_grad():
        model.word_head.decoder.bias[processor.tokenizer.sep] = -100  # never ends
    longest = processor.text_tokens + 1
    options = DecodingOptions(beams=2, max_tokens=longest)
    [found] = caption_prefixes(model, processor, prefix_batch(processor, make_prefixes(processor)[:1]), options)
    assert len(found[0].token_ids) == processor.text_tokens


def test_prefixes_without_any_row_or_without_context_can_be_decoded():
    model, processor = make_captioner()
    prefixes = make_prefixes(processor)
    options = DecodingOptions(beams=2, max_tokens=4)
    for chosen in ([prefixes[3]] * 2, [prefixes[2]]):
        found = caption_prefixes(model, processor, prefix_batch(processor, chosen), options)
        assert [len(hypotheses) for hypotheses in found] == [2] * len(chosen)


def test_a_model_without_a_word_head_cannot_caption():
    model, processor = make_model(), make_processor()
    with pytest.raises(ValueError, match="no word head"):
        CachedDecoder(model, processor, prefix_batch(processor, make_prefixes(processor)))
