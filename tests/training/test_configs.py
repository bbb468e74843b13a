"""The shipped configurations of published protocols."""

from pathlib import Path

import pytest

from dimvl.errors import UserError
from dimvl.tasks import load_config
from dimvl.tasks.answering.config import VqaConfig
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.classification.config import ClassifyConfig
from dimvl.tasks.retrieval.config import RetrieveConfig

CONFIGS = Path(__file__).parents[2] / "configs"
WITHOUT_VALIDATION = {"msrvtt-1k-a.yaml"}
"""Their data has no part for it."""
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def test_every_published_protocol_has_a_configuration():
    expected = [
        *("a-okvqa-choices", "a-okvqa", "activitynet", "coco-karpathy-scst", "coco-karpathy", "flickr30k-entities"),
        *(
            "flickr30k",
            "gqa",
            "msrvtt-1k-a",
            "msrvtt",
            "nlvr2",
            "ok-vqa",
            "refcoco",
            "snli-ve",
            "vcr",
            "vist",
            "vqa-v2",
        ),
    ]
    assert sorted(f"{name}.yaml" for name in expected) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_configuration_loads_and_starts_with_its_command(name):
    config = load_config(CONFIGS / name)
    assert config.initial is not None and (config.validation is not None or name in WITHOUT_VALIDATION)
    assert f"#   dimvl finetune configs/{name} initial=" in (CONFIGS / name).read_text()
    settings = config.training
    assert settings.steps > settings.warmup_steps and settings.rows_per_step >= settings.rows_per_micro_batch
    with pytest.raises(UserError, match="unknown key"):
        load_config(CONFIGS / name, ["training.patience=3"])


def test_vqa_v2_keeps_the_3129_answers():
    config = load_config(CONFIGS / "vqa-v2.yaml")
    assert isinstance(config, VqaConfig) and config.answers == 3129


def test_items_to_classify_have_one_label_each_and_a_pair_of_images_fits() -> None:
    every = {name: load_config(CONFIGS / f"{name}.yaml") for name in ("nlvr2", "snli-ve", "gqa", "nlvr/classify")}
    assert all(isinstance(config, ClassifyConfig) and not config.several_labels for config in every.values())
    assert every["nlvr2"].inputs.max_images >= 2 and every["nlvr/classify"].inputs.max_images >= 3
    assert every["nlvr/classify"].initial is None


def test_a_okvqa_has_its_own_answers_and_ok_vqa_has_annotations() -> None:
    own, other = (load_config(CONFIGS / f"{name}.yaml") for name in ("a-okvqa", "ok-vqa"))
    assert isinstance(own, VqaConfig) and isinstance(other, VqaConfig) and own.initial == other.initial
    assert own.annotations == [] and other.annotations != []


def test_self_critical_training_starts_from_the_cross_entropy_model():
    before, after = (load_config(CONFIGS / f"coco-karpathy{name}.yaml") for name in ("", "-scst"))
    assert isinstance(before, CaptionConfig) and isinstance(after, CaptionConfig)
    assert after.initial == before.output and after.self_critical is not None
    assert after.inputs == before.inputs and after.model == before.model.model_copy(update={"dropout": 0.0})
    assert (after.regions, after.captions, after.split) == (before.regions, before.captions, before.split)


@pytest.mark.parametrize(("name", "images"), [("vist", 5), ("msrvtt", 12), ("msrvtt-1k-a", 12), ("activitynet", 64)])
def test_stories_and_videos_fit_the_rows_of_a_step(name, images):
    config = load_config(CONFIGS / f"{name}.yaml")
    inputs, training = config.inputs, config.training
    assert inputs.max_images == images and inputs.times == (name != "vist")
    rows = images * inputs.max_regions + inputs.tag_tokens + 2 + inputs.text_tokens + 1
    group = config.contrastive.group if isinstance(config, RetrieveConfig) else 1
    assert group * rows <= training.rows_per_micro_batch
    assert (images + images - 1 <= inputs.tag_tokens) == (inputs.concepts == "text"), "a word piece for each image"


def test_masking_seventy_percent_with_smoothing_can_be_configured():
    changes = ["seq2seq.variant=masked", "seq2seq.share=0.7", "smoothing=0.1"]
    config = load_config(CONFIGS / "coco-karpathy.yaml", changes)
    assert (config.seq2seq.variant, config.seq2seq.share, config.smoothing) == ("masked", 0.7, 0.1)
