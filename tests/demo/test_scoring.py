from dimvl.data.scenes import is_true, read_worlds, write_scenes
from dimvl.demo.config import DemoPaths
from dimvl.demo.results import goals_of
from dimvl.demo.scoring import matching_pairs


def test_half_of_the_matching_pairs_are_true_and_the_others_are_verified_false(config, tmp_path):
    paths = DemoPaths(tmp_path)
    scenes = config.scenes.model_copy(update={"train": 1, "heldout": 12, "compositional": 1})
    write_scenes(paths.scenes, config.model_copy(update={"scenes": scenes}).options)
    worlds = read_worlds(paths.scenes / "heldout" / "worlds.jsonl")
    for pairs in matching_pairs(config, paths):
        truth = [is_true(text, worlds[int(image)]) for image, text, _ in pairs]
        assert truth == [label for _, _, label in pairs] and len(pairs) > 20
        assert sum(truth) * 2 == len(truth)


def test_a_goal_is_met_only_if_it_is_reached(results):
    assert [goal.name for goal in goals_of(results, minutes=12) if not goal.met] == [
        "VQA with 3,000 labels: lower end of that gain's interval",
        "VQA with 3,000 labels over question-only",
        "captions: fact precision",
        "captions: relation recall over that by cross entropy",
        "captions: facts per caption",
        "matching: one word changed",
        "minutes, wall clock on 2 cores",
    ]
