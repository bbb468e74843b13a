"""Which regions a model accepts: what must be equal, and what may differ with a warning."""

import logging
from dataclasses import replace

import pytest

from dimvl.errors import UserError
from tests.factories import make_extractor, make_processor

TRAINED = replace(make_extractor(), parameters={"side": 160, "score_threshold": 0.4, "whole_image": False})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "e" * 64}, "weights eeeeeeeeeeee, not ffffffffffff"),
        ({"feature_width": 7}, "features 7 wide"),
        ({"classes": ("star", "square", "circle")}, "other classes"),
        ({"attributes": ()}, "other attributes"),
        ({"parameters": {**TRAINED.parameters, "side": 200}}, "side 200, not 160"),
    ],
)
def test_what_gives_features_and_tags_their_meaning_must_be_equal(change, words):
    processor = replace(make_processor(), extractor=TRAINED)
    with pytest.raises(UserError, match=f"regions/x was made by fake .*{words}.*new_extractor=true"):
        processor.check_extractor(replace(TRAINED, **change), "regions/x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {**TRAINED.parameters, "score_threshold": 0.2}}, "score_threshold 0.2, not 0.4"),
        (
            {"parameters": {"side": 160, "score_threshold": 0.4, "whole_image": False, "given_boxes": True}},
            "given_boxes",
        ),
        ({"name": "elsewhere", "parameters": {}}, "whole_image None, not False"),
    ],
)
def test_settings_that_select_boxes_may_differ_with_a_warning(caplog, change, words):
    processor = replace(make_processor(), extractor=TRAINED)
    with caplog.at_level(logging.WARNING):
        processor.check_extractor(replace(TRAINED, **change), "regions/x")
    assert len(caplog.records) == 1 and words in caplog.text


def test_the_same_extractor_is_accepted_without_a_warning(caplog):
    replace(make_processor(), extractor=TRAINED).check_extractor(replace(TRAINED), "regions/x")
    assert not caplog.records
