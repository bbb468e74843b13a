import json
from pathlib import Path

import numpy as np
import pytest

from dimvl.metrics.cider import CiderD

GOLDEN = Path(__file__).parents[2].parent / "shared/data/golden/caption_golden"
END = 1


def random_text(rng, words, shortest=0):
    return rng.integers(0, words, rng.integers(shortest, 12)).tolist()


def random_corpus(seed):
    """References of images and one candidate for each, with few words so that n-grams repeat."""
    rng = np.random.default_rng(seed)
    words = int(rng.integers(2, 9))
    references = [[random_text(rng, words) for _ in range(rng.integers(1, 5))] for _ in range(rng.integers(1, 9))]
    return references, [random_text(rng, words + 3) for _ in references]


def joined(text):
    return " ".join(map(str, text))


@pytest.mark.parametrize("seed", range(40))
def test_scores_equal_those_of_the_coco_evaluation_on_the_same_tokens(seed):
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    references, candidates = random_corpus(seed)
    truth = {image: [joined(text) for text in texts] for image, texts in enumerate(references)}
    expected = cider.compute_score(truth, {image: [joined(text)] for image, text in enumerate(candidates)})[1]
    found = CiderD(references).scores(candidates, np.arange(len(candidates)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)  # the same sums in another order


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the official scores are not on this machine")
def test_scores_of_real_captions_equal_those_of_the_official_evaluation():
    tokens = json.loads((GOLDEN / "tokenized.json").read_text())
    expected = json.loads((GOLDEN / "expected.json").read_text())
    images = list(tokens["references"])
    cider = CiderD([[text.split() for text in tokens["references"][image]] for image in images])
    scores = cider.scores([tokens["results"][image][0].split() for image in images], range(len(images)))
    assert round(scores.mean(), 4) == expected["scores"]["CIDEr"]
    assert {
        image: round(score, 4) for image, score in zip(images, scores, strict=True) if image in expected["per_image"]
    } == {image: values["CIDEr"] for image, values in expected["per_image"].items()}


def test_a_score_equals_the_hand_computed_one():
    # Four images, one with "b". The candidate has the unigram b twice, with weight log 4, and new bigrams "b b"; the
    # reference has b and the equally rare c once, and "b c".
    cider = CiderD([[["b", "c"]], [["a"]], [["a"]], [["a"]]])
    unigrams = 1 / (2 * np.sqrt(2))  # (1, 1) times (1, 0) after clipping, over the lengths sqrt(2) and 2
    assert cider.scores([["b", "b"]], [0])[0] == pytest.approx(10 / 4 * unigrams)
    longer = np.exp(-1 / (2 * 36))  # one bigram more than the reference
    assert cider.scores([["b", "b", "b"]], [0])[0] == pytest.approx(10 / 4 * longer / (3 * np.sqrt(2)))


@pytest.mark.parametrize("seed", range(5))
def test_scores_do_not_depend_on_the_other_candidates_or_their_order(seed):
    references, _ = random_corpus(seed)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, len(references), 30)
    candidates = [random_text(rng, 9) for _ in images]
    cider = CiderD(references)
    alone = [cider.scores([text], [image])[0] for text, image in zip(candidates, images, strict=True)]
    np.testing.assert_allclose(cider.scores(candidates, images), alone, rtol=0, atol=1e-12)  # sums in another order
    assert len(cider.scores([], [])) == 0


def test_words_and_token_ids_have_equal_scores():
    references, candidates = random_corpus(3)
    words = CiderD([[list(map(str, text)) for text in texts] for texts in references])
    found = words.scores([list(map(str, text)) for text in candidates], range(len(candidates)))
    np.testing.assert_array_equal(found, CiderD(references).scores(candidates, range(len(candidates))))


def test_a_truncated_text_scores_less_if_the_end_is_a_token():
    references = [[[5, 6, 7, 8, END]], [[5, 9, END]], [[6, 9, END]]]
    whole, cut = CiderD(references).scores([[5, 6, 7, 8, END], [5, 6, 7, 8]], [0, 0])
    assert whole == pytest.approx(10) and cut < whole - 1
    without = CiderD([[text[:-1] for text in texts] for texts in references])
    assert without.scores([[5, 6, 7, 8]], [0])[0] == pytest.approx(10), "without it a truncated text is perfect"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        CiderD([])
    with pytest.raises(ValueError, match="at least one reference for each"):
        CiderD([[["a"]], []])
    with pytest.raises(ValueError, match="2 candidates need as many images"):
        CiderD([[["a"]]]).scores([["a"], ["b"]], [0])
