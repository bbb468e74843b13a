"""The grid of a study: what is shared, what comes after what, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from dimvl.config import read_keys
from dimvl.errors import UserError
from dimvl.study.config import StudyConfig
from dimvl.study.stages import make_grid
from tests.study.fakes import STUDY, write_study


def grid_of(folder: Path, **changes: Any) -> Any:
    path = write_study(folder, **changes)
    return make_grid(read_keys(StudyConfig, path), path.parent)


def test_settings_with_the_same_command_share_a_stage_and_all_others_have_their_own(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, seeds=[0, 1, 2])
    # 3 pretrainings; 2 settings x 2 points x 3 seeds, each trained and evaluated.
    assert len(grid.stages) == 3 + 2 * 12 and len(grid.cells) == 12
    assert grid.stages["pretrained-1"].words == (
        *("pretrain", f"{tmp_path}/pretrain.yaml", "output=out/pretrained-1", "seed=1", "training.steps=4"),
        *("--threads", "1"),
    )
    for x in (10, 200):
        answer = grid.stages[f"pretrained/{x}-1"]
        assert answer.after == ("pretrained-1",) and "initial=out/pretrained-1" in answer.words
        assert grid.stages[f"pretrained/{x}-1/evaluation"].after == (f"pretrained/{x}-1",)
        assert (answer.steps, answer.rows) == ({10: 2, 200: 3}[x], {10: 200, 200: 300}[x])
    assert grid.stages["scratch/10-0"].after == ()
    assert {cell.seed for cell in grid.cells[:4]} == {0}, "one seed of all settings comes before the next"


def test_a_stage_that_several_chains_share_comes_after_what_any_of_them_needs(tmp_path: Path) -> None:
    stages = {**STUDY["stages"], "more": "pretrain {here}/pretrain.yaml output={out}/more-{seed} training.steps=1"}
    settings = {
        **STUDY["settings"],
        "other": {"stages": ["more", "pretrain", "answer", "score"], "values": {"initial": "null"}},
    }
    grid = grid_of(tmp_path, stages=stages, settings=settings)
    assert grid.stages["pretrained-0"].after == ("more-0",)
    settings["back"] = {"stages": ["pretrain", "more", "answer", "score"], "values": {"initial": "null"}}
    with pytest.raises(UserError, match="each come after the other; name stages in one order in all settings"):
        grid_of(tmp_path, stages=stages, settings=settings)


def test_an_option_and_its_value_may_be_one_word(tmp_path: Path) -> None:
    words = "evaluate {run} --regions=regions --out={run}/scores --threads=2"
    grid = grid_of(tmp_path, stages={**STUDY["stages"], "score": words})
    assert grid.stages["scratch/10-0/scores"].words == (
        *("evaluate", "out/scratch/10-0", "--regions", "regions", "--out", "out/scratch/10-0/scores", "--threads", "2"),
    )


ANSWER = STUDY["stages"]["answer"]


def changed(name: str, text: str) -> dict[str, Any]:
    return {"seeds": [0, 1], "stages": {**STUDY["stages"], name: text}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("score", "evaluate {ran}"), r"stage 'score' has {ran}, which has no value; add ran to values"),
        (changed("score", "answer {run}"), r"'score' begins with 'answer'; begin with one of pretrain, finetune"),
        (changed("score", ""), r"stage 'score' is empty; give a command"),
        (changed("score", "evaluate"), r"stage 'score' is only 'evaluate'; give its configuration or model"),
        (changed("score", "evaluate 'a"), r"'score' is not a command line \(No closing quotation\)"),
        (changed("pretrain", "finetune {here}/pretrain.yaml output=o"), r"is 'pretrain', which is for pretrain; begin"),
        (changed("answer", f"{ANSWER} training.stepz=1"), r"unknown key 'training.stepz'; did you mean"),
        (changed("answer", f"{ANSWER} training.steps=1{{seed}} output={{out}}/{{x}}"), r"differ; name what"),
        (changed("score", "evaluate {out}/{setting}"), r"one evaluation for x 10 and 200; name {x} in its stages"),
        (changed("score", "evaluate {out}/{setting}/{x}"), r"one evaluation for seed 0 and 1; name {seed} in its"),
        ({"values": {"run": "{run}/a"}}, r"the value of run refers to itself; write it without {run}"),
        ({"baseline": "none"}, r"baseline 'none' is not a setting; name one of scratch, pretrained"),
        ({"only": ["scratch", "tuned"]}, r"only has 'tuned', which is not a setting; name some of scratch, pretrained"),
        ({"only": ["pretrained"]}, r"only leaves out the baseline 'scratch', which the others are compared with; name"),
        ({"points": [{"steps": 3}]}, r"a point has x None; give each a number, such as {x: 1000}"),
        ({"points": [{"x": 3}, {"x": 3}]}, r"two points have the same x; give each its own"),
        ({"values": {"seed": 3}}, r"'seed' has a meaning of its own in stages; give the value another name"),
        ({"values": {**STUDY["values"], "rat": 0.1}}, r"no stage uses the value 'rat'; correct its name, or remove it"),
        (
            {"settings": {"scratch": {"stages": ["score"], "values": {"steps": 7}}}},
            r"'steps' is a value of setting 'scratch' and of a point; give it in one of them",
        ),
        ({"seeds": [1, 1]}, r"1 is named twice; name each one once"),
        ({"settings": {"a/b": {"stages": ["score"]}}}, r"'a/b' names files; write it with letters"),
        ({"settings": {"scratch": {"stages": ["scores"]}}}, r"has stage 'scores', which is not in stages; name one of"),
        ({"settings": {"scratch": {"stages": ["pretrain"]}}}, r"has no stage that evaluates; add one"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid_of(tmp_path, **changes)
