import numpy as np
import pytest

from dimvl.data.annotations import Question
from dimvl.data.scenes import is_true, read_worlds, write_scenes
from dimvl.demo.config import DemoPaths
from dimvl.demo.results import goals_of
from dimvl.demo.scoring import interval, matching_pairs


def test_half_of_the_matching_pairs_are_true_and_the_others_are_verified_false(config, tmp_path):
    paths = DemoPaths(tmp_path)
    scenes = config.scenes.model_copy(update={"train": 1, "heldout": 12, "compositional": 1})
    write_scenes(paths.scenes, config.model_copy(update={"scenes": scenes}).options)
    worlds = read_worlds(paths.scenes / "heldout" / "worlds.jsonl")
    for pairs in matching_pairs(config, paths):
        truth = [is_true(text, worlds[int(image)]) for image, text, _ in pairs]
        assert truth == [label for _, _, label in pairs] and len(pairs) > 20
        assert sum(truth) * 2 == len(truth)


def test_the_interval_counts_images_and_not_their_questions():
    right = np.random.default_rng(0).random(400) < 0.7
    asked = [Question(number, (str(number),), "is it red?", ("yes",)) for number in range(400)]
    half = interval(right, asked)
    assert half == pytest.approx(1.96 * right.std() / 20, rel=0.05)
    assert interval(np.repeat(right, 5), [question for question in asked for _ in range(5)]) == pytest.approx(half)


def test_a_goal_is_met_only_if_it_is_reached(results):
    assert [goal.name for goal in goals_of(results, minutes=12) if not goal.met] == [
        "VQA over question-only",
        "VQA over no pretraining, beyond its interval",
        "captions: fact precision",
        "captions: facts per caption",
        "matching: one word changed",
        "minutes, wall clock on 2 cores",
    ]
