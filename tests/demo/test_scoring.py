import numpy as np

from dimvl.data.annotations import Caption
from dimvl.data.scenes import is_true, read_worlds, write_scenes
from dimvl.demo.config import DemoPaths
from dimvl.demo.results import goals_of
from dimvl.demo.scoring import matching_pairs, shared_words
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.factories import make_extractor, make_regions


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
        "VQA with 3,000 labels: gain over question-only",
        "captions: fact precision",
        "captions: relation recall, gain over cross entropy",
        "captions: facts per caption",
        "matching: one word changed",
        "search: R@1 of 40 images by all captions of an image together",
        "minutes, wall clock on 2 cores",
    ]


def test_a_bag_of_words_knows_which_names_a_caption_has_but_not_their_order(tmp_path):
    names = {"1": (0, (1, 2)), "2": (1, (1, 3)), "3": (0, (0, 3))}  # a large red circle, a large blue square, ...
    with RegionStoreWriter(tmp_path / "store", make_extractor()) as writer:
        for number, (image, (one, attributes)) in enumerate(names.items()):
            regions = make_regions(number, image, count=1)
            regions.class_ids[0, 0] = one
            regions.attribute_ids[0] = attributes
            writer.add(regions)
    texts = [
        "Two large red circles.",
        "a square large and blue",
        "blue the large square is",
        "nothing known",
        "a circle and a square",
    ]
    captions = [Caption(number, (str(number),), text) for number, text in enumerate(texts)]
    found = shared_words(captions, RegionStore(tmp_path / "store"), [((image,), ()) for image in names])
    assert found[:, :3].argmax(axis=0).tolist() == [0, 1, 1]
    assert np.allclose(found[:, 1], found[:, 2]) and not found[:, 3].any()
    assert found[:, 4].argmax() == 1, "one image has a square and two have a circle"
