"""Further tasks of a demo: statements about several images, grounding, stories."""

import json

import pytest

from dimvl.config import validate
from dimvl.data.annotations import read_captions
from dimvl.data.scenes import SceneOptions, write_scenes
from dimvl.demo.config import DemoConfig, DemoPaths, load_demo_config, shipped_config
from dimvl.demo.further import FURTHER
from dimvl.demo.results import FURTHER_GOALS, MOST_LABELS, goals_of
from dimvl.demo.stages import all_stages
from dimvl.errors import UserError
from dimvl.files import read_json
from tools import write_results

NEEDED = {"statements_per_image": 4, "phrases_per_image": 2, "images_per_story": 3}


@pytest.fixture
def small(config):
    """A demo of further tasks on a few scenes."""
    training = config.caption.model_copy(update={"steps": 1, "save_every": 1})
    scenes = config.scenes.model_copy(update={"train": 10, "heldout": 10, "compositional": 10, **NEEDED})
    phase = config.pretraining[0].model_copy(update={"training": training})
    changes = {"lanes": 1, "scenes": scenes, "pretraining": [phase], "further": dict.fromkeys(FURTHER, training)}
    changes |= {"labels": [config.labels[-1].model_copy(update={"steps": 1})]}
    inputs = config.inputs.model_copy(update={"max_images": 5})
    model = config.model.model_copy(update={"layers": 1, "width": 24, "heads": 2, "inner_width": 24})
    return config.model_copy(update={**changes, "inputs": inputs, "model": model})


def test_further_tasks_run_from_scenes_to_scores(small, tmp_path):
    paths, done = DemoPaths(tmp_path), []
    wanted = {f"score-{task}" for task in FURTHER}
    stages = {stage.name: stage for stage in all_stages(small)}
    pending = [stage for name in wanted for stage in needed(name, stages)]
    for stage in sorted(set(pending), key=list(stages.values()).index):
        assert set(stage.after) <= set(done), stage
        stage.work(small, paths, lambda finished, total: None)
        done.append(stage.name)
    assert "extract-stories" in done and "no_pretraining-3000" not in done
    scores = {task: read_json(paths.scores / f"{task}.json") for task in FURTHER}
    assert scores["statements"]["majority"] == 0.5 and set(scores["grounding"]["by_kind"]) >= {"attribute"}
    assert scores["grounding"]["upper_bound"] >= 0.8 > scores["grounding"]["largest_region"]
    assert scores["stories"]["count"] == sum(len(story.image_ids) for story in stories(paths))
    for own in scores.values():
        assert own["interval"][0] <= own["accuracy"] <= own["interval"][1] and own["count"] >= 10
    starts = {task: read_json(paths.run(task) / "run.json")["start"]["name"] for task in FURTHER}
    assert starts == {"statements": "vqa-3000", "grounding": "pretraining-1", "stories": "pretraining-1"}


def needed(name, stages):
    return [stage for before in stages[name].after for stage in needed(before, stages)] + [stages[name]]


def stories(paths):
    return read_captions(paths.scenes / "heldout" / "stories.jsonl")


def test_scores_are_those_of_what_was_predicted(tmp_path):
    write_scenes(tmp_path, SceneOptions(seed=3, train=0, heldout=12, compositional=0, **NEEDED))
    folder = tmp_path / "heldout"
    records = {task: lines(folder / own.file) for task, own in FURTHER.items()}
    told = [{"prediction": record["caption"]} for record in records["stories"]]
    right = FURTHER["stories"].score(told, records["stories"], folder)
    assert right["accuracy"] == right["changes"] == right["whole_stories"] == 1 and right["interval"] == [1, 1]
    assert right["stories"] == 4 and right["another_story"] < 0.3
    told[0]["prediction"] = told[0]["prediction"].split(".")[0] + "."
    changes = [len(record["images"]) - 1 for record in records["stories"]]
    found = FURTHER["stories"].score(told, records["stories"], folder)
    assert found["changes"] == pytest.approx(1 - changes[0] / sum(changes))
    assert found["whole_stories"] == pytest.approx(3 / 4)
    items = [{"means": {"accuracy": float(record["kind"] == "total")}} for record in records["statements"]]
    of_statements = FURTHER["statements"].score(items, records["statements"], folder)
    assert of_statements["by_kind"]["total"] == 1 and of_statements["by_kind"]["each"] == 0
    assert 0 <= of_statements["interval"][0] < of_statements["accuracy"] < 0.5 == of_statements["majority"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_task_without_its_data_is_refused(config):
    content = config.model_dump() | {"further": {"grounding": config.caption.model_dump()}}
    with pytest.raises(UserError, match=r"further has grounding, but scenes\.phrases_per_image is 0; set scenes\.phr"):
        validate(DemoConfig, content, "demo.yaml")


def test_keys_that_hold_for_the_whole_demo_are_refused_elsewhere(config):
    content = config.model_dump() | {"shared_prefix": False}
    content["pretraining"][0]["objectives"]["shared_prefix"] = True
    with pytest.raises(UserError, match="shared_prefix holds for the whole demo; give it at the top"):
        validate(DemoConfig, content, "demo.yaml")
    content = config.model_dump()
    content["inputs"]["tokenizer"] = "tokenizer.json"
    with pytest.raises(UserError, match=r"a demo trains its own tokenizer; remove inputs\.tokenizer"):
        validate(DemoConfig, content, "demo.yaml")


def test_the_full_run_has_goals_for_most_labels_statements_and_grounding(results):
    full = load_demo_config(shipped_config("full"))
    assert list(full.further) == list(FURTHER) and full.labels[-1].questions in MOST_LABELS
    new = {"VQA with 60,000 labels": 0.849, "statements: accuracy": 0.85, "grounding: accuracy": 0.95}
    assert not new.keys() & {goal.name for goal in goals_of(results, 40)}, "other demos have none of these"
    results["vqa"] |= {"labels": 60_000, "heldout": 0.849}
    results |= {task: {"accuracy": least - 0.001} for task, least in FURTHER_GOALS.items()}
    goals = {goal.name: goal for goal in goals_of(results, 40) if goal.name in new}
    assert {name: goal.goal for name, goal in goals.items()} == new
    assert [name for name, goal in goals.items() if goal.met] == ["VQA with 60,000 labels"]


def test_the_writer_of_results_has_a_row_for_each_further_task():
    scores = {"accuracy": 0.8612, "interval": [0.8512, 0.8712], "count": 4000}
    results = {
        "statements": {**scores, "majority": 0.5, "by_kind": {"only": 0.9, "total": 0.8}},
        "grounding": {**scores, "upper_bound": 0.99, "largest_region": 0.4, "by_kind": {"place": 0.96}},
        "stories": {**scores, "changes": 0.7, "whole_stories": 0.4, "another_story": 0.1, "stories": 250},
    }
    table = write_results.further(results)
    assert "| statements | 4,000 | 0.861 | 0.851 to 0.871 | majority 0.500 | only 0.900, total 0.800 |" in table
    assert (
        "| grounding | 4,000 | 0.861 | 0.851 to 0.871 | upper bound 0.990, largest region 0.400 | place 0.960 |"
        in table
    )
    assert sum(line.startswith("| stories |") for line in table) == 1
    assert write_results.further({}) == []
