import json
import os
import re
import shutil
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from dimvl.errors import UserError
from dimvl.files import locked, read_sealed, write_sealed
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training import run_folder
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import Killed, at_step, bytes_of, kill


def test_a_second_process_is_refused_a_run_folder_in_use(data, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    config = make_config(data, tmp_path, training={"steps": 8})
    refused = []

    def again():
        with pytest.raises(UserError, match=f"another process trains in {tmp_path}; wait for it or stop it") as caught:
            run_training(config)
        refused.append(caught.value)

    run_training(config, at_step(2, again))
    assert len(refused) == 1 and bytes_of(tmp_path) == bytes_of(undisturbed)


def test_colleagues_read_all_files_of_a_run_and_links_in_it_are_not_written_through(data, tmp_path, monkeypatch):
    monkeypatch.setattr("dimvl.data.epoch_plan.PIECE", 4)  # so that plans are files
    run, outside = tmp_path / "run", tmp_path / "outside"
    (outside / "plans").mkdir(parents=True)
    (outside / "plans" / "mine").write_text("mine")
    (outside / "file").write_text("mine\n")
    run.mkdir()
    (run / ".plans").symlink_to(outside / "plans")
    for name in ("log.jsonl", "texts.json", "trained_on.npy", "processor.json"):
        (run / name).symlink_to(outside / "file")
    before = os.umask(0o027)
    try:
        run_training(make_config(data, run, training={"steps": 4, "save_every": 1, "keep": 9}))
    finally:
        os.umask(before)
    assert [file.name for file in (outside / "plans").iterdir()] == ["mine"]
    assert (outside / "file").read_text() == "mine\n"
    modes = {(path.is_dir(), oct(path.lstat().st_mode)[-3:]) for path in run.rglob("*")}
    assert modes == {(True, "750"), (False, "640")}


def test_a_run_that_waited_for_a_folder_still_checks_whose_it_is(data, tmp_path):
    run_training(make_config(data, tmp_path / "first"))
    config = make_config(data, tmp_path / "run", seed=4)
    with ExitStack() as holding:
        holding.enter_context(locked(config.output))

        def claim_and_end():
            shutil.copy(tmp_path / "first" / "run.json", config.output)
            holding.close()

        threading.Timer(0.5, claim_and_end).start()
        with pytest.raises(UserError, match=r"holds a run with another seed \(3, not 4\)"):
            run_training(config)


def test_a_run_waits_for_the_worker_processes_of_a_killed_one(data, tmp_path, undisturbed):
    config = make_config(data, tmp_path, training={"steps": 8})
    holding, held = ExitStack(), []
    holding.enter_context(locked(tmp_path))
    holding.callback(held.append, False)
    threading.Timer(0.5, holding.close).start()
    run_training(config, lambda report: held.append(True))
    assert held[0] is False and bytes_of(tmp_path) == bytes_of(undisturbed)


def test_a_users_own_plans_folder_stays(data, tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "summer").write_text("sea")
    run_training(make_config(data, tmp_path))
    assert (tmp_path / "plans" / "summer").read_text() == "sea" and not (tmp_path / run_folder.PLANS).exists()


@pytest.mark.parametrize("saved", [True, False])
def test_a_failed_run_releases_its_folder_only_if_it_has_no_checkpoint(data, tmp_path, saved):
    def fail():
        raise UserError("failed on purpose")

    every = {"save_every": 2 if saved else 100}
    with pytest.raises(UserError, match="failed on purpose"):
        run_training(make_config(data, tmp_path, training=every), at_step(3, fail))
    other = make_config(data, tmp_path, training=every | {"learning_rate": 1e-4})
    if saved:
        with pytest.raises(UserError, match=r"holds a run with another training\.learning_rate"):
            run_training(other)
    else:
        run_training(other)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows_per_step": 10}, "above training.rows_per_step 10"),
        ({"freeze": {"layers": 5}}, "training.freeze.layers is 5"),
    ],
)
def test_a_run_that_trained_nothing_releases_its_folder_to_the_fixed_configuration(data, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        run_training(make_config(data, tmp_path, training={"steps": 2, **wrong}))
    run_training(make_config(data, tmp_path, training={"steps": 2}))
    with pytest.raises(UserError, match=r"another training\.clip"):  # a trained run keeps its folder
        run_training(make_config(data, tmp_path, training={"steps": 2, "clip": 2.0}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="device cuda is valid here")
def test_a_missing_device_is_reported_before_anything_is_written(data, tmp_path):
    with pytest.raises(UserError, match="no CUDA device is available"):
        run_training(make_config(data, tmp_path / "run", training={"device": "cuda"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[], 5, {"config": []}])
def test_a_damaged_run_description_is_reported(data, tmp_path, content):
    run_training(make_config(data, tmp_path, training={"steps": 1}))
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run.json is damaged"):
        run_training(make_config(data, tmp_path, training={"steps": 1}))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 4}, "seed (3, not 4)"),
        ({"training": {"steps": 9}}, "training.steps (8, not 9)"),
        ({"model": {"width": 32}}, "model.width (16, not 32)"),
        ({"seq2seq": {"captions": 1}}, "seq2seq.captions (2, not 1)"),
    ],
)
def test_a_different_configuration_in_the_same_folder_is_refused(data, tmp_path, undisturbed, changes, name):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    changes = {"training": {"steps": 8}, **changes}
    with pytest.raises(UserError, match=f"holds a run with another {re.escape(name)};"):
        run_training(make_config(data, run, **changes))
    assert bytes_of(run) == bytes_of(undisturbed)


@pytest.mark.parametrize("name", ["scenes.json", "manifest.json", "demo.json"])
def test_a_folder_that_holds_something_else_is_refused_and_unchanged(data, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path} holds .*, where training must not write; give another output"):
        run_training(make_config(data, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_options_that_do_not_change_the_result_may_change_between_starts(data, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.copytree(data.regions, tmp_path / "copy")
    run_training(make_config(data, run, training={"steps": 8}, regions=tmp_path / "copy"))
    free = {"steps": 8, "workers": 1, "threads": 1, "device": "cpu", "log_every": 2, "save_every": 5, "keep": 2}
    run_training(make_config(data, run, training=free))
    run_training(make_config(data, run, training={"steps": 8, "rows_per_micro_batch": 40}))


def test_changed_annotations_under_the_same_name_are_refused(data, tmp_path, undisturbed):
    run, moved = tmp_path / "run", tmp_path / "data"
    shutil.copytree(undisturbed, run)
    shutil.copytree(data.captions.parent, moved)
    described = read_sealed(run / "run.json", "")
    described["config"]["captions"] = [str(moved / "c.json")]
    write_sealed(run / "run.json", described)
    copied = type(data)(moved / "regions", moved / "c.json", moved / "q.json", moved / "a.json")
    config = make_config(copied, run, training={"steps": 8})
    run_training(config)
    config.captions[0].write_text(config.captions[0].read_text().replace("star", "circle", 1))
    with pytest.raises(UserError, match=r"another captions\.sha256"):
        run_training(config)


def test_a_changed_region_store_under_the_same_path_is_refused(data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(data.regions, store)
    config = make_config(data, tmp_path / "run", regions=store, training={"save_every": 2})
    with pytest.raises(Killed):
        run_training(config, at_step(3, kill))
    before = bytes_of(tmp_path / "run")
    regions = [RegionStore(data.regions).read(place) for place in range(len(RegionStore(data.regions)))]
    shutil.rmtree(store)
    other = replace(RegionStore(data.regions).extractor, name="another", fingerprint="f" * 64)
    with RegionStoreWriter(store, other) as writer:
        for found in regions:
            writer.add(replace(found, features=-found.features))
    with pytest.raises(UserError, match="another region store \\(its content differs\\)"):
        run_training(config)
    assert bytes_of(tmp_path / "run") == before
