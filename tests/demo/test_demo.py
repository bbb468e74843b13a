import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dimvl.data.scenes import is_true, read_worlds, write_scenes
from dimvl.demo.config import Places, configs_folder, load_demo_config, run_config
from dimvl.demo.results import goals_of
from dimvl.demo.runner import finish, run_demo, run_stages
from dimvl.demo.stages import Stage, all_stages, interval, matching_pairs
from dimvl.errors import UserError
from dimvl.files import read_json, write_json

CONFIGS = sorted((configs_folder() / "scenes").glob("*.yaml"))


@pytest.fixture
def config():
    return load_demo_config(configs_folder() / "scenes" / "quick.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_stage_waits_for_earlier_ones_only_and_has_its_place_in_the_budget(path):
    config = load_demo_config(path)
    stages = all_stages(config)
    for place, stage in enumerate(stages):
        assert {*stage.after} <= {earlier.name for earlier in stages[:place]} | {later.name for later in stages}
    done: set[str] = set()
    while ready := [stage.name for stage in stages if stage.name not in done and done.issuperset(stage.after)]:
        done.update(ready)
    assert done == {stage.name for stage in stages} == set(config.seconds)


def test_each_baseline_differs_from_the_model_in_one_thing(config):
    places = Places(Path("out"))
    main = run_config(config, places, "vqa").model_dump()
    scratch = run_config(config, places, "no_pretraining").model_dump()
    blind = run_config(config, places, "question_only").model_dump()
    assert {key for key in main if main[key] != scratch[key]} == {"output", "initial"}
    assert {key for key in scratch if scratch[key] != blind[key]} == {"output", "inputs"}
    changed = {key for key in blind["inputs"] if blind["inputs"][key] != scratch["inputs"][key]}
    assert changed == {"max_regions", "tag_tokens"} and not any(blind["inputs"][key] for key in changed)
    plain = run_config(config, places, "pretraining_without_word_change-1").model_dump()
    with_changes = run_config(config, places, "pretraining-1").model_dump()
    assert {key for key in plain if plain[key] != with_changes[key]} == {"output", "objectives"}
    assert plain["objectives"]["word_change_share"] == 0 < with_changes["objectives"]["word_change_share"]


def test_self_critical_training_goes_on_with_the_captioner_and_takes_its_place(config):
    places = Places(Path("out"))
    before, after = (run_config(config, places, name) for name in ("caption", "self_critical"))
    assert after.initial == before.output and after.captions == before.captions and after.self_critical is not None
    stages = {stage.name: stage for stage in all_stages(config)}
    assert stages["self_critical"].after == ("caption",)
    assert "self_critical" in stages["score-captions"].after and "self_critical" in stages["export"].after
    plain = config.model_copy(update={"self_critical": None})
    assert plain.captioner == "caption" and "self_critical" not in {stage.name for stage in all_stages(plain)}


def test_half_of_the_matching_pairs_are_true_and_the_others_are_verified_false(config, tmp_path):
    places = Places(tmp_path)
    write_scenes(
        places.scenes,
        config.model_copy(
            update={"scenes": config.scenes.model_copy(update={"train": 1, "heldout": 12, "compositional": 1})}
        ).options,
    )
    worlds = read_worlds(places.scenes / "heldout" / "worlds.jsonl")
    for pairs in matching_pairs(config, places):
        truth = [is_true(text, worlds[int(image)]) for image, text, _ in pairs]
        assert truth == [label for _, _, label in pairs] and len(pairs) > 20
        assert sum(truth) * 2 == len(truth)


def test_the_interval_is_1_96_standard_errors():
    assert interval([0.0, 1.0, 1.0, 0.0]) == pytest.approx(1.96 * np.sqrt(1 / 3) / 2)


@pytest.fixture
def results():
    """What a demo reached: some goals, not all."""
    vqa = dict.fromkeys(("heldout_interval", "ground_truth_boxes", "no_pretraining", "majority"), 0.1)
    vqa |= {"heldout": 0.8, "question_only": 0.6, "pretraining_gain": 0.01, "pretraining_gain_interval": 0.02}
    caption = ("fact_precision", "attribute_precision", "relation_precision", "facts_per_caption", "distinct")
    return {
        "vqa": vqa,
        "caption": dict.fromkeys(caption, 0.85) | {"fact_recall": 0.4, "reference_recall": 0.5},
        "matching": {"random": 0.96, "one_word": 0.74},
        "seconds": {"wall": 721},
        "peak_memory_gb": 6.0,
    }


def test_a_goal_is_met_only_if_it_is_reached(results):
    met = {goal.name: goal.met for goal in goals_of(results, minutes=12)}
    assert [name for name, reached in met.items() if not reached] == [
        "VQA over question-only",
        "VQA over no pretraining, beyond its interval",
        "captions: fact precision",
        "captions: facts per caption",
        "matching: one word changed",
        "minutes, wall clock on 2 cores",
    ]


def test_a_demo_without_a_checkout_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("dimvl.demo.runner.configs_folder", lambda: tmp_path / "configs")
    with pytest.raises(UserError, match=r"demo\.yaml of the demo comes with a checkout of dimvl.*--config"):
        run_demo(None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_quick_demo_says_in_print_and_on_its_page_that_it_is_too_short_to_learn(config, results, tmp_path):
    places, console = Places(tmp_path), Console(file=io.StringIO(), width=200)
    (tmp_path / "train").mkdir()
    for group in ("vqa", "caption", "matching"):
        write_json(places.scores / f"{group}.json", results[group])
    for file, content in (("detector", {}), ("examples", [])):
        write_json(places.scores / f"{file}.json", content)
    write_json(places.wall, {"seconds": 100.0})
    finish(config, places, [], configs_folder() / "scenes" / "quick.yaml", console)
    told = "too short to learn, so its goals are not meant to be met"
    assert told in console.file.getvalue() and told in places.report.read_text()


def note(config, places, progress):
    with (places.out / "calls").open("a") as file:
        file.write("x")


def refuse(config, places, progress):
    raise UserError("the picture is missing; draw it")


def test_stages_that_are_done_are_not_done_again_and_what_follows_a_failure_waits(config, tmp_path):
    places, console = Places(tmp_path), Console(quiet=True)
    stages = [Stage("one", note, (), ""), Stage("two", refuse, ("one",), ""), Stage("three", note, ("two",), "")]
    for _ in range(2):
        with pytest.raises(UserError, match="stage two: the picture is missing; draw it"):
            run_stages(config, places, stages, console)
    assert (tmp_path / "calls").read_text() == "x"
    run_stages(config, places, [stages[0], Stage("two", note, ("one",), ""), stages[2]], console)
    assert (tmp_path / "calls").read_text() == "xxx"
    assert read_json(places.stages / "three.json")["seconds"] >= 0
