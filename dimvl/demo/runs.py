"""The configuration of each training run of the demo."""

from typing import Any, cast

from dimvl.config import RunConfig
from dimvl.demo.config import DemoConfig, DemoPaths, Further
from dimvl.demo.further import FURTHER, further_config
from dimvl.tasks.answering.config import VqaConfig
from dimvl.tasks.captioning.config import CaptionConfig, RetrievalConfig, SelfCriticalConfig
from dimvl.tasks.pretraining.config import PretrainConfig


def run_config(config: DemoConfig, paths: DemoPaths, name: str) -> RunConfig:
    """Make the configuration of one training run of the demo.

    Each baseline differs from its model in one thing: `no_pretraining-N` starts from scratch, with the steps that suit
    this; `question_only` is the same without regions and concepts, for the largest N, with the steps that suit it. If N
    is the most that the scenes may have, all questions are taken, since some scenes may have fewer.

    Args:
        config: the demo's configuration.
        paths: the demo's files.
        name: `pretraining-1`, ..., `vqa-N` for N labelled questions, `caption`, `self_critical`, a baseline, or one of
            `FURTHER`.

    """
    common: dict[str, Any] = {
        "output": paths.run(name),
        "seed": config.seed,
        "regions": paths.regions("train"),
        "cache": paths.out / "texts",
        "model": config.model,
        "inputs": config.inputs.model_copy(update={"tokenizer": paths.tokenizer}),
    }
    if name.startswith("pretraining"):
        return _pretraining(config, paths, name, common)
    if name in ("caption", "self_critical"):
        return _captioning(config, paths, name, common)
    if name in FURTHER:
        return further_config(cast(Further, name), config, paths, common)
    return _answering(config, paths, name, common)


def _answering(config: DemoConfig, paths: DemoPaths, name: str, common: dict[str, Any]) -> VqaConfig:
    if name == "question_only":
        common["inputs"] = common["inputs"].model_copy(update={"max_regions": 0, "concepts": "none"})
    common["model"] = config.model.model_copy(update={"dropout": config.answer_dropout})
    series, _, number = name.rpartition("-")
    point = next((point for point in config.labels if str(point.questions) == number), config.labels[-1])
    pretrained = series == "vqa"
    steps = point.steps if pretrained else point.steps_from_scratch
    if name == "question_only":
        steps = config.question_only
    return VqaConfig(
        **common,
        task="vqa",
        training=config.vqa.model_copy(update={"steps": steps}),
        initial=paths.run(config.last_pretraining) if pretrained else None,
        questions=[paths.scenes / "train" / "questions.json"],
        annotations=[paths.scenes / "train" / "annotations.json"],
        subset=point.questions if point.questions < config.scenes.train * config.scenes.questions_per_image else None,
        shared_prefix=config.shared_prefix,
    )


def _pretraining(config: DemoConfig, paths: DemoPaths, name: str, common: dict[str, Any]) -> PretrainConfig:
    number = int(name.rpartition("-")[2])
    phase = config.pretraining[number - 1]
    return PretrainConfig(
        **common,
        objectives=phase.objectives.model_copy(update={"shared_prefix": config.shared_prefix}),
        training=phase.training,
        seq2seq=config.seq2seq,
        captions=[paths.scenes / "train" / "captions.json"],
        initial=paths.run(f"pretraining-{number - 1}") if number > 1 else None,
    )


def _captioning(config: DemoConfig, paths: DemoPaths, name: str, common: dict[str, Any]) -> CaptionConfig:
    common |= {"task": "caption", "captions": [paths.scenes / "train" / "captions.json"], "seq2seq": config.seq2seq}
    if name == "caption":
        initial = paths.run(config.last_pretraining)
        return CaptionConfig(**common, training=config.caption, initial=initial, smoothing=config.smoothing)
    assert config.self_critical is not None
    initial, judge, retrieval = paths.run("caption"), paths.run(config.last_pretraining), None
    if config.retrieval is not None:
        retrieval = RetrievalConfig(judge=judge, **config.retrieval.model_dump())
    reward = SelfCriticalConfig(retrieval=retrieval)
    return CaptionConfig(**common, training=config.self_critical, initial=initial, self_critical=reward)
