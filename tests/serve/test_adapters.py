"""Adapters are served beside their base, by name."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from dimvl.adapters.folder import ADAPTER_WEIGHTS
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.serve.models import open_models
from dimvl.serve.requests import GivenRegions
from dimvl.training.run import run_training
from tests.exports import make_image
from tests.factories import make_extractor, make_regions
from tests.serve.calls import png, send, served, text
from tests.tiny_runs import make_config, make_data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Exports without a detector: a base, two adapters of it, and another model."""
    place = tmp_path_factory.mktemp("adapters")
    data = make_data(place / "data")
    base = run_training(make_config(data, place / "base", training={"steps": 1}))
    other = run_training(make_config(data, place / "other", training={"steps": 1}, seed=4))
    runs = {"base": base, "other": other}
    for name, task in (("asked", "vqa"), ("told", "caption")):
        adapter = {"prefix": {"length": 3}}
        config = make_config(data, place / name, task, initial=base, adapter=adapter, training={"learning_rate": 1.0})
        runs[name] = run_training(config)
    where = {"base": "none", "other": "none"}
    return {name: str(export(run, place / "exports" / name, where.get(name))) for name, run in runs.items()}


def test_requests_to_adapters_and_their_base_share_a_batch_and_each_gets_its_own_result(
    folders: dict[str, str],
) -> None:
    models = open_models([folders["base"]], [folders["asked"], f"second={folders['told']}"], "cpu")
    base, regions = models["base"].predictor, [make_regions(seed) for seed in (1, 2)]
    images = [GivenRegions.of(one, make_extractor()).model_dump() for one in regions]
    asked, told = base.with_adapter(folders["asked"]), base.with_adapter(folders["told"])
    calls = [
        ("/answer", {"json": {"image": images[0], "question": "a star"}}),
        ("/caption", {"json": {"image": images[1], "model": "base"}}),
        ("/caption", {"json": {"image": images[1], "model": "second"}}),
        ("/answer", {"json": {"image": images[1], "question": "a star", "model": "asked"}}),
    ]
    wrong = [
        ("/answer", {"json": {"image": images[1], "question": "a star", "model": "second"}}),
        ("/regions", {"json": {"image": images[1]}}),
        ("/caption", {"json": {"image": text(png(make_image()))}}),
    ]
    with served(models, start=False) as (server, app):
        found = [one.json() for one in send(app, *calls, server=server)]
        refused = [one.json() for one in send(app, *wrong)]
    assert [one["model"] for one in found] == ["asked", "base", "second", "asked"]
    for one, own in ((found[0], regions[0]), (found[3], regions[1])):
        expected = asked.answer(own, "a star")
        assert one["answer"] == expected.text and one["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert [one["caption"] for one in found[1:3]] == [base.caption(regions[1]), told.caption(regions[1])]
    assert found[1]["caption"] != found[2]["caption"], "so an exchange would show"
    assert "'second' cannot answer" in refused[0]["error"]
    assert "is not served" in refused[1]["error"]
    assert "base has no detector, so it takes no images" in refused[2]["error"]


def test_an_adapter_finds_its_base_among_the_exports_or_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    models = open_models([folders["other"], folders["base"]], [folders["asked"]], "cpu")
    assert models["asked"].predictor.detector_folder == models["base"].predictor.detector_folder
    with pytest.raises(UserError, match=r"was trained on base with weights .*; give the base"):
        open_models([folders["other"]], [folders["asked"]], "cpu")
    with pytest.raises(UserError, match="is not an adapter of an export that is served; serve its base too"):
        open_models([folders["other"], f"twice={folders['other']}"], [folders["asked"]], "cpu")
    with pytest.raises(UserError, match="nowhere"):
        open_models([folders["other"], folders["base"]], [f"{folders['asked']}-nowhere"], "cpu")
    damaged = Path(shutil.copytree(folders["asked"], tmp_path / "damaged"))
    (damaged / ADAPTER_WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=f"{ADAPTER_WEIGHTS} is damaged"):
        open_models([folders["other"], folders["base"]], [str(damaged)], "cpu")
    with pytest.raises(UserError, match="empty or already taken"):
        open_models([folders["base"]], [f"base={folders['asked']}"], "cpu")
    image = GivenRegions.of(dataclasses.replace(make_regions(1)), make_extractor())
    assert image.names[0].split()[-1] in make_extractor().classes
