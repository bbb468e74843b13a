import errno
import fcntl
import os
import pickle
import time
from itertools import pairwise

import numpy as np
import pytest

from dimvl.data import epoch_plan
from dimvl.data.epoch_plan import EpochPlans, plan_epoch
from dimvl.data.examples import KeyedUniform, keyed_generator
from dimvl.data.sampler import TrainingSteps
from dimvl.errors import UserError
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.training import PretrainSource
from tests.at_once import at_once
from tests.factories import make_processor
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data

BUDGET = 100


class Costs:
    """Documents of which nothing is known but their rows; counts how often they are asked for in a file."""

    enlarging_keys = ("inputs.max_regions",)

    def __init__(self, costs, asked=None):
        self.values, self.asked = np.asarray(costs), asked

    def __len__(self):
        return len(self.values)

    def costs(self, epoch, some):
        if self.asked is not None:
            with self.asked.open("a") as file:
                file.write(f"{epoch}\n")
            time.sleep(0.05)  # so that another process could come in between
        return self.values[some] + epoch


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Make 200 examples worth a file."""
    monkeypatch.setattr(epoch_plan, "PIECE", 64)


@pytest.fixture
def source(tmp_path):
    return Costs(np.random.default_rng(0).integers(5, 60, 200), tmp_path / "asked")


def planned(source):
    """Which epochs were planned, one after the other."""
    epochs = [int(line) for line in source.asked.read_text().split()]
    assert all(len(set(epochs[start : start + 4])) == 1 for start in range(0, len(epochs), 4)), "four pieces each"
    return epochs[::4]


def steps_of(plan):
    return [plan.step(number)[0].tolist() for number in range(len(plan))]


def cut_one_by_one(source, epoch, seed):
    """The obvious way: shuffle, and begin a step where one example more would be too many."""
    costs, order = all_costs(source, epoch), np.arange(len(source), dtype=np.int32)
    keyed_generator(seed, "order", epoch).shuffle(order)
    steps, rows = [[]], 0
    for example in order.tolist():
        if rows + costs[example] > BUDGET:
            steps.append([])
            rows = 0
        steps[-1].append(example)
        rows += costs[example]
    return steps


def test_steps_are_a_shuffled_cut_of_all_examples_within_the_budget(source):
    plan = plan_epoch(source, 0, seed=1, row_budget=BUDGET)
    steps, costs = steps_of(plan), all_costs(source, 0)
    examples = [example for step in steps for example in step]
    assert sorted(examples) == list(range(200)) and examples != list(range(200))
    assert all(costs[step].sum() <= BUDGET for step in steps)
    assert all(plan.step(number)[1].tolist() == costs[step].tolist() for number, step in enumerate(steps))
    # no step could have taken the example that the next one begins with
    assert all(costs[one].sum() + costs[two[0]] > BUDGET for one, two in pairwise(steps))


@pytest.mark.parametrize("piece", [1, 3, 64, 200, 1000])
def test_the_pieces_that_an_epoch_is_planned_in_change_nothing(source, monkeypatch, piece):
    monkeypatch.setattr(epoch_plan, "PIECE", piece)
    for epoch in range(3):
        assert steps_of(plan_epoch(source, epoch, seed=1, row_budget=BUDGET)) == cut_one_by_one(source, epoch, seed=1)


@pytest.mark.parametrize("costs", [[100], [100, 100, 100], [0, 0, 0], [1, 99, 0, 100, 0, 60, 41]])
@pytest.mark.parametrize("piece", [1, 2, 100])
def test_examples_as_large_as_a_step_and_empty_ones_are_cut_as_one_by_one(monkeypatch, costs, piece):
    monkeypatch.setattr(epoch_plan, "PIECE", piece)
    source = Costs(costs)
    assert steps_of(plan_epoch(source, 0, seed=2, row_budget=BUDGET)) == cut_one_by_one(source, 0, seed=2)


def test_an_example_above_the_budget_and_no_examples_are_one_clear_sentence():
    with pytest.raises(UserError, match=r"101 rows, above training\.rows_per_step 100; raise it, or lower inputs\.max"):
        plan_epoch(Costs([5, 101]), 0, seed=1, row_budget=BUDGET)
    with pytest.raises(UserError, match="no examples"):
        plan_epoch(Costs([]), 0, seed=1, row_budget=BUDGET)


def test_plans_in_files_are_those_in_memory(source, tmp_path):
    files, own = (EpochPlans(source, 1, BUDGET, folder) for folder in (tmp_path / "plans", None))
    for epoch in (0, 1, 4, 0):
        assert steps_of(files[epoch]) == steps_of(own[epoch]) and files.num_steps(epoch) == len(own[epoch])


def test_few_examples_are_not_worth_a_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_plan, "PIECE", 200)
    plans = EpochPlans(source, 1, BUDGET, tmp_path / "plans")
    assert steps_of(plans[3]) == cut_one_by_one(source, 3, seed=1) and not (tmp_path / "plans").exists()


def ask_at_once(source, folder, epochs):
    """What four processes get that ask for the same plans at the same time."""

    def ask():
        plans = EpochPlans(source, 1, BUDGET, folder)
        return [(steps_of(plans[epoch]), plans.num_steps(0)) for epoch in range(epochs)]

    return at_once(ask)


def test_an_epoch_is_planned_once_for_all_processes_even_if_all_of_them_ask_at_once(source, tmp_path):
    found = ask_at_once(source, tmp_path / "plans", epochs=2)
    assert planned(source) == [0, 1] and all(one == found[0] for one in found)


def test_processes_that_no_lock_keeps_apart_get_the_same_plans(tmp_path, monkeypatch):
    # as those of several nodes are on many a shared file system
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    source = Costs(np.random.default_rng(0).integers(5, 60, 200))
    wanted = [cut_one_by_one(source, epoch, seed=1) for epoch in range(30)]
    for one in ask_at_once(source, tmp_path / "plans", epochs=30):
        assert one == [(steps, len(wanted[0])) for steps in wanted]


def test_a_plan_that_a_process_maps_is_not_replaced_by_that_of_another_one(source, tmp_path, monkeypatch):
    # the pages of a file that another node has removed are no longer there to be read
    plans, real = EpochPlans(source, 1, BUDGET, tmp_path), epoch_plan.plan_epoch

    def meanwhile(*arguments):
        monkeypatch.setattr(epoch_plan, "plan_epoch", real)
        monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
        other.append(EpochPlans(source, 1, BUDGET, tmp_path)[0])
        mapped.append((tmp_path / "epoch-0" / "order.npy").stat().st_ino)
        return real(*arguments)

    other, mapped = [], []
    monkeypatch.setattr(epoch_plan, "plan_epoch", meanwhile)
    assert steps_of(plans[0]) == steps_of(other[0])
    assert mapped == [(tmp_path / "epoch-0" / "order.npy").stat().st_ino]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["epoch-0"]


def test_of_epochs_before_the_last_one_only_the_number_of_steps_is_kept(source, tmp_path):
    plans = EpochPlans(source, 1, BUDGET, tmp_path / "plans")
    lengths = [len(plans[epoch]) for epoch in range(4)]
    kept = {path.parent.name for path in (tmp_path / "plans").glob("*/order.npy")}
    assert kept == {"epoch-2", "epoch-3"} == {path.parent.name for path in (tmp_path / "plans").glob("*/costs.npy")}
    later = EpochPlans(source, 1, BUDGET, tmp_path / "plans")
    assert [later.num_steps(epoch) for epoch in range(4)] == lengths and planned(source) == [0, 1, 2, 3]
    assert steps_of(later[0]) == cut_one_by_one(source, 0, seed=1)  # a removed plan is made again when needed


def test_a_plan_that_was_not_finished_is_none(source, tmp_path, monkeypatch):
    plans = EpochPlans(source, 1, BUDGET, tmp_path / "plans")
    with monkeypatch.context() as patched:
        patched.setattr(epoch_plan, "_starts", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plans[0]
    assert list((tmp_path / "plans").iterdir()) == []
    assert steps_of(plans[0]) == cut_one_by_one(source, 0, seed=1)


def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot write .*epoch-0: No space left on device"):
        EpochPlans(source, 1, BUDGET, tmp_path / "plans")[0]
    assert list((tmp_path / "plans").iterdir()) == []


def test_the_space_of_a_plan_is_taken_before_it_is_filled(tmp_path):
    # filling a map of a file with holes kills the process where the disk is full
    array = epoch_plan._on_disk(tmp_path / "order.npy", np.int32, 10**6)
    assert (tmp_path / "order.npy").stat().st_blocks * 512 >= array.nbytes == 4 * 10**6


def test_what_a_loader_process_is_sent_does_not_grow_with_the_examples(tmp_path):
    sizes = []
    for images in (70, 400):
        processor, data = make_processor(), make_data(tmp_path / str(images), images)
        arguments = (caption_store(data, processor), image_reader(data, processor), ObjectivesConfig())
        source = PretrainSource(*arguments, Seq2seqConfig(), processor.tokenizer, seed=1)
        budgets = {"rows_per_step": BUDGET, "rows_per_micro_batch": BUDGET, "plans": tmp_path / str(images) / "plans"}
        steps = TrainingSteps(source, None, seed=1, steps=9, **budgets)
        steps.locate(3)
        sizes.append(len(pickle.dumps(steps)))
    assert abs(sizes[1] - sizes[0]) < 100


def test_keyed_numbers_come_from_any_place_as_drawn_one_after_the_other():
    wanted = keyed_generator(3, "objectives", 5).random(50)
    numbers = KeyedUniform(3, "objectives", 5)
    for start, end in np.sort(np.random.default_rng(0).integers(0, 51, (200, 2))).tolist():
        assert numbers[start:end].tolist() == wanted[start:end].tolist()
