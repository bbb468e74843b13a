"""Hard negatives: which images are neighbours, and where they are drawn."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from dimvl.data.examples import keyed_generator
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.tasks.pretraining.config import HardNegativesConfig
from dimvl.tasks.pretraining.hard_negatives import HardNegatives
from dimvl.tasks.retrieval import prediction
from dimvl.tasks.retrieval.neighbours import find_neighbours
from dimvl.tasks.retrieval.prediction import embed_all_texts, embed_groups, embed_store
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests.exports import all_abilities, make_trained, write_run
from tests.tiny_runs import caption_store, make_config, make_data, make_several
from tests.training.runs import Killed, at_step, bytes_of, kill, log_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 9, empty=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("model") / "run", make_trained(all_abilities(aligns=True)))


def find(data, run, among=3):
    trained = load_model(run)
    captions, config = caption_store(data, trained.processor), HardNegativesConfig(model=run, among=among)
    return captions, find_neighbours(config, trained.processor, captions, RegionStore(data.regions))


def test_neighbours_are_the_images_whose_captions_fit_best(data, run):
    captions, found = find(data, run)
    trained, store = load_model(run), RegionStore(data.regions)
    images = embed_store(trained, store, [((image,), ()) for image in captions.image_ids()]).pooled
    decoded = [trained.processor.tokenizer.decode(captions.tokens(text).tolist()) for text in range(len(captions))]
    texts, owners = embed_all_texts(trained, decoded).pooled, np.repeat(np.arange(9), np.diff(captions.groups))
    for image in range(9):
        scores = [
            -np.inf if other == image else float(images[image] @ texts[owners == other].mean(dim=0))
            for other in range(9)
        ]
        assert found[image].tolist() == np.argsort(scores)[::-1][:3].tolist()


def test_images_are_embedded_in_batches_of_bounded_rows(data, run, monkeypatch):
    trained, store = load_model(run), RegionStore(data.regions)
    captions = caption_store(data, trained.processor)
    whole = embed_store(trained, store, [((image,), ()) for image in captions.image_ids()]).pooled
    monkeypatch.setattr(prediction, "ROW_BUDGET", 12)
    # fp32: batches of other sizes sum in another order
    torch.testing.assert_close(embed_groups(trained, captions, store), whole, atol=1e-5, rtol=1e-5)


def test_neighbours_share_no_image(data, run):
    several = make_several(data)
    captions, found = find(several, run, 2)
    for group, own in enumerate(found.tolist()):
        assert group not in own and not any(captions.share_images(group, other) for other in own)


def test_they_are_found_again_only_if_something_changed(run, tmp_path):
    data = make_data(tmp_path / "data", 9, empty=4)
    _, found = find(data, run)
    [file] = [path for path in (data.captions.parent / "texts").glob("neighbours-*.npy")]
    before = file.stat().st_mtime_ns
    find(data, run)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    _, again = find(data, run)
    assert np.array_equal(found, again)
    other = write_run(tmp_path / "run", make_trained(all_abilities(aligns=True), seed=1))
    assert not np.array_equal(find(data, other)[1], found)


def test_a_share_of_negatives_and_of_members_are_neighbours():
    neighbours = np.array([[1, 2, 3]] * 9, np.int32)
    hard, generator = HardNegatives(neighbours, 0.5, 0), keyed_generator("a")
    drawn = Counter(hard.draw(0, generator) for _ in range(600))
    assert set(drawn) == {None, 1, 2, 3} and drawn[None] / 600 == pytest.approx(0.5, abs=0.09)
    for epoch in range(20):
        members = hard.replace(epoch, np.array([0, 1, 5, 6, 7])).tolist()
        assert members[0] == 0 and len(set(members)) == 5 and len(set(members) & {1, 2, 3}) >= 2


GROUPS_OF_9 = {"objectives": {"shares": {"contrastive": 1}, "contrastive": {"group": 9}}}
ALIGNED = {"shares": {"matching": 1, "contrastive": 1}, "contrastive": {"group": 4}}


@pytest.mark.parametrize(("task", "changes"), [("retrieve", {}), ("pretrain", {"objectives": ALIGNED})])
def test_training_with_hard_negatives_resumes_with_the_model_that_it_began_with(data, tmp_path, task, changes):
    changes |= {"training": {"rows_per_step": 400, "steps": 4, "save_every": 1}}
    first = run_training(make_config(data, tmp_path / "first", task, **changes))
    without = run_training(make_config(data, tmp_path / "without", task, initial=first, **changes))
    changes |= {"initial": shutil.copytree(first, tmp_path / "initial")}
    changes |= {"hard_negatives": {"model": first, "among": 3, "share": 1}}
    whole = run_training(make_config(data, tmp_path / "whole", task, **changes))
    assert log_of(whole)[1]["losses"] != log_of(without)[1]["losses"]
    assert list(json.loads((whole / "run.json").read_text())["judges"]) == ["hard_negatives.model"]
    config = make_config(data, tmp_path / "run", task, **changes)
    with pytest.raises(Killed):
        run_training(config, at_step(2, kill))
    first.rename(tmp_path / "kept")
    shutil.copytree(without, first)
    with pytest.raises(UserError, match=r"another hard_negatives\.model \(its weights differ\); give another output"):
        run_training(config)
    shutil.rmtree(first)
    (tmp_path / "kept").rename(first)
    run_training(config)
    assert bytes_of(config.output) == bytes_of(whole)


def test_pretraining_refuses_hard_negatives_that_it_cannot_draw(data, tmp_path):
    blind = write_run(tmp_path / "blind", make_trained(all_abilities()))
    with pytest.raises(UserError, match=r"hard_negatives\.model .*blind was not trained to align"):
        run_training(make_config(data, tmp_path / "run", hard_negatives={"model": blind, "among": 3}))
    with pytest.raises(ValueError, match=r"whose shares are 0; remove hard_negatives, or raise objectives\.shares\."):
        make_config(data, tmp_path / "run", objectives={"shares": {"matching": 0}}, hard_negatives={"model": blind})


def test_a_model_that_cannot_choose_is_refused(data, tmp_path, run):
    blind = write_run(tmp_path / "blind", make_trained(all_abilities()))
    with pytest.raises(UserError, match=r"hard_negatives\.model .*blind was not trained to align"):
        find(data, blind)
    with pytest.raises(UserError, match=r"hard_negatives\.among is 9 but only 8 other images have captions; lower it"):
        find(data, run, 9)


@pytest.mark.parametrize(("task", "changes"), [("retrieve", {"contrastive": {"group": 9}}), ("pretrain", GROUPS_OF_9)])
def test_a_share_of_a_group_is_no_larger_than_the_images_to_draw_from(data, tmp_path, task, changes):
    def hard(among):
        make_config(data, tmp_path, task, **changes, hard_negatives={"model": tmp_path, "among": among, "share": 0.5})

    hard(4)
    with pytest.raises(
        ValueError, match=r"0\.5 of the 8 other images of a group is 4, and .* 3 are fewer; raise among"
    ):
        hard(3)
