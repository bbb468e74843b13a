from pathlib import Path

import pytest

from dimvl.config import validate
from dimvl.demo.config import DemoConfig, DemoPaths, load_demo_config, shipped_config
from dimvl.demo.runs import run_config
from dimvl.demo.stages import all_stages
from dimvl.errors import UserError
from dimvl.tasks.captioning.config import RetrievalReward

PATHS = DemoPaths(Path("out"))


@pytest.mark.parametrize("name", ["demo", "full", "quick"])
def test_every_stage_can_start_once_earlier_ones_are_done_and_has_expected_seconds(name):
    config = load_demo_config(shipped_config(name))
    stages = all_stages(config)
    done: set[str] = set()
    while ready := [stage.name for stage in stages if stage.name not in done and done.issuperset(stage.after)]:
        done.update(ready)
    assert done == {stage.name for stage in stages} == set(config.seconds)


def test_stages_that_train_and_no_others_state_their_steps(config):
    trained = {stage.name: stage.steps for stage in all_stages(config) if stage.steps}
    runs = {name: run_config(config, PATHS, name).training.steps for name in trained}
    assert trained == runs and len(trained) == 9


def test_each_baseline_differs_from_the_model_in_one_thing(config):
    main = run_config(config, PATHS, "vqa-3000").model_dump()
    scratch = run_config(config, PATHS, "no_pretraining-3000").model_dump()
    blind = run_config(config, PATHS, "question_only").model_dump()
    assert {key for key in main if main[key] != scratch[key]} == {"output", "initial"}
    assert {key for key in scratch if scratch[key] != blind[key]} == {"output", "inputs", "training"}
    assert {key for key in blind["training"] if scratch["training"][key] != blind["training"][key]} == {"steps"}
    changed = {key for key in blind["inputs"] if blind["inputs"][key] != scratch["inputs"][key]}
    assert changed <= {"max_regions", "concepts"}
    assert (blind["inputs"]["max_regions"], blind["inputs"]["concepts"]) == (0, "none")


def test_self_critical_training_starts_from_the_captioner_and_replaces_it_in_scores_and_exports(config):
    before, after = (run_config(config, PATHS, name) for name in ("caption", "self_critical"))
    assert after.initial == before.output and after.captions == before.captions and after.self_critical is not None
    stages = {stage.name: stage for stage in all_stages(config)}
    assert stages["self_critical"].after == ("caption",)
    assert "self_critical" in stages["score-captions"].after and "self_critical" in stages["export"].after
    assert after.self_critical.retrieval is None
    mixed = config.model_copy(update={"retrieval": RetrievalReward(weight=0.5)})
    retrieval = run_config(mixed, PATHS, "self_critical").self_critical.retrieval
    assert (retrieval.judge, retrieval.weight) == (PATHS.run(config.last_pretraining), 0.5)
    plain = config.model_copy(update={"self_critical": None})
    assert plain.captioner == "caption" and "self_critical" not in {stage.name for stage in all_stages(plain)}


def test_each_point_of_the_curve_has_its_own_labels_and_steps_with_and_without_pretraining():
    config = load_demo_config(shipped_config("demo"))
    for point in config.labels:
        ours, scratch = (run_config(config, PATHS, f"{name}-{point.questions}") for name in ("vqa", "no_pretraining"))
        assert ours.subset == scratch.subset == point.questions and scratch.initial is None
        assert (ours.training.steps, scratch.training.steps) == (point.steps, point.steps_from_scratch)
        assert ours.model.dropout == scratch.model.dropout == config.answer_dropout == 0.1
    assert run_config(config, PATHS, "pretraining-1").model.dropout == config.model.dropout == 0
    assert run_config(config, PATHS, "question_only").subset == config.labels[-1].questions


@pytest.mark.parametrize(
    ("numbers", "mistake"),
    [([3000, 300], "they must rise"), ([3000, 4000], "up to the 3000 of the scenes"), ([300], "lacks 3000 questions")],
)
def test_labels_that_cannot_be_are_refused_in_one_sentence(config, numbers, mistake):
    labels = [{"questions": number, "steps": 1, "steps_from_scratch": 1} for number in numbers]
    with pytest.raises(UserError, match=mistake):
        validate(DemoConfig, config.model_dump() | {"labels": labels}, "demo.yaml")
