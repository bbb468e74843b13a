"""What a result rests on: the drop of its probability without each region, for every ability."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dimvl.config import DecodingOptions
from dimvl.data.prefixes import Prefix, join_images, make_prefix
from dimvl.decoding import caption_prefixes
from dimvl.errors import UserError
from dimvl.explanation import without
from dimvl.predictor import Predictor
from dimvl.regions.records import Regions
from dimvl.tasks import abilities_of
from dimvl.tasks.captioning.evidence import caption_evidence, log_probabilities
from dimvl.trained_model import TrainedModel
from tests.exports import all_abilities, make_trained
from tests.factories import make_regions

LABELS = ["a star", "a red circle", "two blue stars"]
OPTIONS = DecodingOptions(beams=2, max_tokens=6)


def make_predictor(**changes: Any) -> Predictor:
    return Predictor(make_trained(all_abilities(**changes), seed=3), Path("none"))


def prefixes_of(trained: TrainedModel, regions: Regions) -> list[Prefix]:
    joined = join_images([regions])
    fewer = [without(joined, place) for place in range(len(regions))]
    return [make_prefix(each, trained.processor.tags) for each in (joined, *fewer)]


def named(result: Any) -> Any:
    """What a result says, without probabilities, which differ by rounding between batches."""
    if isinstance(result, list):
        return [name for name, _ in result]
    if isinstance(result, float):
        return pytest.approx(result, abs=1e-5)
    return getattr(result, "text", getattr(result, "candidate", result))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor(aligns=True, labels=("false", "true"))


@pytest.mark.parametrize(
    ("verb", "text", "options"),
    [
        ("answer", "is it red", {"top": 2}),
        ("match", "a red star", {}),
        ("choose", "is it", {"candidates": LABELS}),
        ("classify by labels", None, {"labels": LABELS, "top": 1}),
        ("classify", "is it", {"top": 2}),
        ("caption", None, {"beams": 2, "max_tokens": 6}),
    ],
)
def test_a_drop_is_what_the_result_loses_without_the_region_and_the_result_is_that_of_predict(
    predictor: Predictor, verb: str, text: str | None, options: dict[str, Any]
) -> None:
    regions = make_regions(5, count=4)
    found = predictor.explain(regions, text, verb, **options)
    [expected] = predictor.predict(verb, regions, text, **options)
    assert named(found.result) == named(expected)
    trained = predictor.trained
    ability = abilities_of(trained.processor)[verb]
    settled = ability.settle(trained, **options)
    wanted, drops = None, {}
    for place, prefix in enumerate(prefixes_of(trained, regions)):
        if verb == "caption":
            tokens = np.array(trained.processor.tokenizer.encode(found.result))
            value = float(log_probabilities(trained, [prefix], tokens).sum())
        elif text is None:
            value = ability.apply(trained, [prefix], None, **settled)[0]
        else:
            [value] = ability.apply(trained, [prefix], ability.prepare(trained, [text], **settled))
        value = torch.as_tensor(value[1] if verb == "choose" else value).reshape(-1)
        wanted = int(value.argmax()) if wanted is None else wanted
        if place:
            drops[place - 1] = found.probability - float(value[wanted])
        else:
            assert found.probability == pytest.approx(float(value[wanted]), abs=1e-5)
    own = sorted(drops.values(), reverse=True)
    assert [region.probability_drop for region in found.regions] == pytest.approx(own, abs=1e-5)
    assert max(map(abs, own)) > 1e-4 and len({*own}) > 1


def test_the_region_that_a_phrase_refers_to_has_no_probability_where_it_is_missing() -> None:
    predictor, regions = make_predictor(grounds=True), make_regions(5, count=4)
    found = predictor.explain(regions, "a red star", "ground")
    best = int(found.result.argmax())
    drops = {tuple(one.box): one.probability_drop for one in found.regions}
    boxes = predictor.ground(regions, "a red star", top=4).regions
    assert drops[tuple(boxes[0].box)] == pytest.approx(found.probability) == pytest.approx(float(found.result[best]))
    trained, [text] = predictor.trained, predictor.trained.tokenise(["a red star"])
    other = next(place for place in range(4) if place != best)
    prefix = prefixes_of(trained, regions)[1 + other]
    [fewer] = abilities_of(trained.processor)["ground"].apply(trained, [prefix], [text])
    without_other = found.probability - float(fewer[best - (other < best)])
    assert any(drop == pytest.approx(without_other, abs=1e-5) for drop in drops.values())


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_the_log_probability_of_a_caption_is_that_of_the_search_and_its_words_sum_up_to_it(variant: Any) -> None:
    trained = make_trained(all_abilities(variant=variant), seed=3)
    prefixes = prefixes_of(trained, make_regions(5, count=3))
    from dimvl.data.examples import Example

    example = Example(source="", objective="", prefix=prefixes[0], texts=[], seq2seq=True)
    [[best]] = caption_prefixes(trained.model, trained.processor, trained.batch([example], {}), OPTIONS, wanted=1)
    found = caption_evidence(trained, prefixes, OPTIONS)
    assert float(found.probabilities[0]) == pytest.approx(best.log_probability, abs=1e-4)
    assert found.raw == trained.processor.tokenizer.decode(list(best.token_ids))
    assert " ".join(found.words) == found.raw and found.of_words is not None
    ends = log_probabilities(trained, prefixes, np.array(best.token_ids))[:, -1]
    torch.testing.assert_close(found.of_words.sum(dim=1) + ends, found.probabilities, atol=1e-5, rtol=1e-5)


def test_the_words_of_a_caption_have_drops_of_their_own(predictor: Predictor) -> None:
    found = predictor.explain(make_regions(5, count=4), verb="caption", beams=2, max_tokens=6)
    assert found.words and all(len(region.word_drops) == len(found.words) for region in found.regions)
    record = found.regions[0].record(found.logarithms)
    assert record["log_probability_drop"] == found.regions[0].probability_drop and "probability_drop" not in record
    matched = predictor.explain(make_regions(5, count=4), "a star", "match").regions[0]
    assert "word_drops" not in matched.record(False) and matched.word_drops == ()


def test_an_image_without_regions_has_an_explanation_without_regions(predictor: Predictor) -> None:
    for verb, text in (("answer", "is it"), ("caption", None), ("match", "a star")):
        assert predictor.explain(make_regions(5, count=0), text, verb).regions == []


def test_what_cannot_be_explained_is_one_sentence(predictor: Predictor) -> None:
    regions = make_regions(5)
    for verb, text, says in (
        ("align", "a star", "'align' gives no result with a probability; explain answer or caption or choose or"),
        ("answer", None, "'answer' takes a text; give it"),
        ("caption", "a star", "'caption' takes no text; omit it"),
        ("ground", "a star", "cannot ground, but it can"),
    ):
        with pytest.raises(UserError, match=says):
            predictor.explain(regions, text, verb)
