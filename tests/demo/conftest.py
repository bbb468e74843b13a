import pytest

from dimvl.demo.config import load_demo_config, shipped_config


@pytest.fixture
def config():
    return load_demo_config(shipped_config("quick"))


@pytest.fixture
def results():
    """Scores of a demo that meets some of its goals."""
    vqa = dict.fromkeys(("heldout_interval", "ground_truth_boxes", "zero_shot", "no_pretraining", "majority"), 0.1)
    vqa |= {"heldout": 0.8, "question_only": 0.6, "pretraining_gain": 0.01, "pretraining_gain_interval": 0.02}
    point = {"pretrained": 0.72, "none": 0.55, "gain": 0.17, "interval": [0.09, 0.25]}
    point |= {"pretrained_interval": [0.7, 0.74], "none_interval": [0.53, 0.57]}
    vqa |= {"labels": 3000, "few_labels": {"300": point, "3000": point}}
    caption = ("fact_precision", "attribute_precision", "place_precision", "relation_precision", "distinct")
    recalls = {"facts_per_caption": 0.85, "fact_recall": 0.4, "reference_recall": 0.5, "relation_recall": 0.3}
    before = {"place_recall": 0.1, "relation_recall": 0.31}
    return {
        "vqa": vqa,
        "caption": dict.fromkeys(caption, 0.85) | recalls | {"place_recall": 0.2, "before_self_critical": before},
        "matching": {"random": 0.96, "one_word": 0.74},
        "search": {"images": 40, "all_captions": {"r1": 0.79}},
        "seconds": {"wall": 721},
        "peak_memory_gb": 6.0,
    }
