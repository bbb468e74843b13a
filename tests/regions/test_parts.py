"""Which part a process does, and where it is written."""

import re

import pytest

from dimvl.errors import UserError
from dimvl.regions.parts import check_complete, check_no_parts, folder_of_part, launched, parts_of
from dimvl.regions.sources.base import Part

ARRAY = {"ID": 5, "COUNT": 3, "MIN": 3, "MAX": 7, "STEP": 2}


def environment(monkeypatch, **values):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID")
    for name in (*names, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", *(f"SLURM_ARRAY_TASK_{name}" for name in ARRAY)):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": 1, "RANK": 0}, None),
        ({"SLURM_NTASKS": 8, "SLURM_PROCID": 0}, None),  # a batch script, which is one process of its job
        ({"WORLD_SIZE": 4, "RANK": 3, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}, ("4/4", "torchrun", 1, 2)),
        ({"SLURM_STEP_NUM_TASKS": 2, "SLURM_PROCID": 1, "SLURM_LOCALID": 1}, ("2/2", "srun", 1, 1)),
        ({f"SLURM_ARRAY_TASK_{name}": value for name, value in ARRAY.items()}, ("2/3", "SLURM array", 0, 1)),
        (
            {"WORLD_SIZE": 2, "RANK": 1, **{f"SLURM_ARRAY_TASK_{name}": value for name, value in ARRAY.items()}},
            ("4/6", "SLURM array and torchrun", 0, 1),
        ),
    ],
)
def test_a_process_takes_its_part_from_its_launcher(monkeypatch, values, expected):
    environment(monkeypatch, **values)
    found = launched()
    assert (found and (str(found.part), *found[1:])) == expected


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' and must be a whole number"),
        ({"WORLD_SIZE": 2, "RANK": 2}, "torchrun says process 2 of 2"),
        ({f"SLURM_ARRAY_TASK_{n}": v for n, v in {**ARRAY, "MAX": 9}.items()}, "with gaps, so task 5 cannot tell"),
        ({f"SLURM_ARRAY_TASK_{n}": v for n, v in {**ARRAY, "ID": 4}.items()}, "with gaps, so task 4 cannot tell"),
    ],
)
def test_a_launcher_that_does_not_tell_the_part_is_named(monkeypatch, values, problem):
    environment(monkeypatch, **values)
    with pytest.raises(UserError, match=problem):
        launched()


def test_a_part_has_a_folder_beside_the_store_which_must_not_mix_with_others(tmp_path):
    store = tmp_path / "train"
    part = folder_of_part(store, Part(2, 3))
    assert part == tmp_path / "train.part-2-of-3"
    part.mkdir()
    assert folder_of_part(store, Part(2, 3)) == part  # to be continued
    with pytest.raises(UserError, match=r"train.part-2-of-3 is one of 3 parts, and there are 4 processes; start 3"):
        folder_of_part(store, Part(1, 4))
    with pytest.raises(UserError, match=r"train was begun by 3 processes, in .*; join them .* --part 2/3"):
        check_no_parts(store)
    check_no_parts(tmp_path / "val")
    store.mkdir()
    check_no_parts(store)  # joined
    with pytest.raises(UserError, match="train exists already"):
        folder_of_part(store, Part(2, 3))


def test_a_missing_part_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=re.escape("train has no parts (train.part-1-of-N ...); name the stores")):
        parts_of(tmp_path / "train")
    for number in (1, 3, 10, 2):
        (tmp_path / f"train.part-{number}-of-10").mkdir()
    with pytest.raises(UserError, match=r"lacks part-4-of-10, part-5-of-10, part-6-of-10 and 3 more; .* --part 4/10"):
        parts_of(tmp_path / "train")
    check_complete([tmp_path / "any", tmp_path / "x.part-1-of-1"])
    for number in range(4, 10):
        (tmp_path / f"train.part-{number}-of-10").mkdir()
    assert [path.name for path in parts_of(tmp_path / "train")][1:3] == ["train.part-2-of-10", "train.part-3-of-10"]
