"""Region stores in commands and runs: inspected, verified, several as one, and read with checks."""

import inspect
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.cli.stores import scenes
from dimvl.data.scenes import SceneOptions
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training.run import run_training
from tests.cli.calls import Run
from tests.exports import make_detector, make_image, make_trained, write_run
from tests.factories import make_extractor, make_regions
from tests.regions.importers.written import images_of, write_plain
from tests.tiny_runs import TinyData, make_config


def write_part(folder: Path, images: range) -> Path:
    """The images with these numbers, as in `make_data`."""
    with RegionStoreWriter(folder, make_extractor()) as writer:
        for number in images:
            writer.add(make_regions(number, str(number), 2 + number % 4))
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write_part(tmp_path / "part-0", range(1, 5)), write_part(tmp_path / "part-1", range(5, 7))]


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_inspect_prints_json_or_bar_charts(run: Run, data: TinyData) -> None:
    facts = json.loads(run("inspect", data.regions, "--json")[1])
    assert (facts["images"], facts["regions"], facts["feature_dtype"], facts["finished"]) == (6, 21, "float16", True)
    assert facts["regions_per_image"] == [
        {"low": low, "high": low, "number": number} for low, number in ((2, 1), (3, 2), (4, 2), (5, 1))
    ]
    assert [part["number"] for part in facts["top_scores"]] == [0] * 7 + [21, 0, 0]  # all of score .75
    lines = run("inspect", data.regions)[1].splitlines()
    assert "images: 6" in lines and "classes: circle, square, star" in lines
    assert lines[lines.index("regions_per_image:") + 2] == f"3  2  {'#' * 40}"
    assert lines[lines.index("top_scores:") + 8] == f"0.7 - 0.8  21  {'#' * 40}"


def test_inspect_prints_the_first_of_many_names_and_their_count(run: Run, tmp_path: Path) -> None:
    names = tuple(f"class\x1b {number}" for number in range(1600))
    with RegionStoreWriter(tmp_path / "store", replace(make_extractor(), classes=names)) as writer:
        writer.add(make_regions(1))
    out = run("inspect", tmp_path / "store")[1]
    [line] = [line for line in out.splitlines() if line.startswith("classes: ")]
    assert line.startswith(r"classes: 1,600, beginning with class\x1b 0, class\x1b 1, ") and line.endswith(" 7")
    assert tuple(json.loads(run("inspect", tmp_path / "store", "--json")[1])["classes"]) == names


def test_verify_finds_a_damaged_manifest_and_rejects_other_folders(run: Run, data: TinyData, tmp_path: Path) -> None:
    flip_last_bit(data.regions / "manifest.json")
    code, out, _ = run("verify", data.regions)
    assert code == 1 and "manifest.json is damaged" in out and out.endswith("without it every image is lost\n")
    code, out, err = run("verify", tmp_path)
    assert (code, out) == (2, "") and "is not a region store" in err


def test_verify_names_images_whose_ids_cannot_be_printed(run: Run, tmp_path: Path) -> None:
    with RegionStoreWriter(tmp_path / "store", make_extractor()) as writer:
        writer.add(replace(make_regions(1), image_id=os.fsdecode(b"caf\xe9")))
    flip_last_bit(next((tmp_path / "store").glob("shard-*")))
    code, out, _ = run("verify", tmp_path / "store")
    assert (code, out) == (1, "shard-00000.safetensors is damaged; lost images: caf\\udce9\n")


@pytest.mark.parametrize("command", ["extract", "import"])
def test_features_are_stored_as_int8_on_request(run: Run, tmp_path: Path, command: str) -> None:
    asked: tuple[object, ...] = ("import", write_plain(tmp_path, images_of()))
    if command == "extract":
        make_detector().save(tmp_path / "detector")
        make_image(1).save(tmp_path / "1.png")
        asked = ("extract", tmp_path, "--where", tmp_path / "detector", "--top-k", 3)
    (name, source, *options), folders = asked, [tmp_path / "float16", tmp_path / "int8"]
    assert run(name, source, folders[0], *options)[0] == 0
    assert run(name, source, folders[1], *options, "--dtype", "int8")[0] == 0
    float16, int8 = (RegionStore(folder) for folder in folders)
    assert [folder.manifest.feature_dtype for store in (float16, int8) for folder in store.folders] == [
        "float16",
        "int8",
    ]
    assert len(float16) == len(int8) > 0
    for position in range(len(int8)):
        exact, kept = float16.read(position).features.astype(np.float32), int8.read(position).features
        largest = np.abs(exact).max(axis=1, keepdims=True, initial=0)
        # float16 rounds the exact values by up to 1/2048, far less than a step of int8
        assert np.all(np.abs(kept - exact) <= largest * (1 / 254 + 1 / 2048)) and np.isfinite(kept).all()
    assert run("verify", folders[1])[0] == 0
    code, _, err = run(name, source, folders[1], *options)
    assert code == 2 and "holds features as int8, not as float16; continue with int8" in err
    code, _, err = run(name, source, tmp_path / "int4", *options, "--dtype", "int4")
    assert code == 2 and "'int4' is not one of 'float16', 'int8'" in err and not (tmp_path / "int4").exists()


def test_evaluation_on_the_parts_of_a_store_equals_the_whole(
    run: Run, data: TinyData, parts: list[Path], tmp_path: Path
) -> None:
    trained = write_run(tmp_path / "run", make_trained())
    asked = ("evaluate", trained, "--questions", data.questions, "--annotations", data.annotations)
    assert run(*asked, "--regions", data.regions, "--out", tmp_path / "whole")[0] == 0
    assert run(*asked, "--regions", parts[1], "--regions", parts[0], "--out", tmp_path / "parts")[0] == 0
    for name in ("predictions.json", "scores.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    code, _, err = run(*asked, "--regions", parts[0], "--regions", data.regions)
    assert code == 2 and "part-0 and" in err and "have images in common, such as '" in err


def test_evaluation_never_reads_damaged_regions(run: Run, data: TinyData, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", make_trained())
    flip_last_bit(next(data.regions.glob("shard-*")))
    code, _, err = run("evaluate", trained, "--questions", data.questions, "--regions", data.regions)
    assert code == 2 and "the regions of image '6' do not match their checksum; `dimvl verify" in err


def losses(folder: Path) -> list[object]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if "losses" in line]


def test_training_on_the_parts_of_a_store_has_the_losses_of_the_whole(
    data: TinyData, parts: list[Path], tmp_path: Path
) -> None:
    runs = [
        run_training(make_config(data, tmp_path / name, "caption", regions=regions, training={"check_reads": checked}))
        for name, regions, checked in (("whole", data.regions, False), ("parts", parts, True))
    ]
    assert losses(runs[0]) == losses(runs[1]) and len(losses(runs[0])) == 6


def test_training_with_checks_stops_at_damaged_regions_and_names_the_image(data: TinyData, tmp_path: Path) -> None:
    flip_last_bit(next(data.regions.glob("shard-*")))
    with pytest.raises(UserError, match="the regions of image '6' do not match their checksum"):
        run_training(make_config(data, tmp_path / "run", "vqa", training={"check_reads": True}))
    with pytest.raises(UserError, match="is damaged: its checksum differs; `dimvl verify"):
        flip_last_bit(data.regions / "index.bin")
        run_training(make_config(data, tmp_path / "other", "vqa", training={"check_reads": True}))


def test_features_are_finite_numbers_from_a_store_of_int8(data: TinyData, tmp_path: Path) -> None:
    with RegionStoreWriter(tmp_path / "int8", make_extractor(), feature_dtype="int8") as writer:
        for number in range(1, 7):
            writer.add(make_regions(number, str(number), 2 + number % 4))
    folders = [
        run_training(make_config(data, tmp_path / f"{name}-run", regions=regions, training={"steps": 3}))
        for name, regions in (("float16", data.regions), ("int8", tmp_path / "int8"))
    ]
    both = [
        [value for step in losses(folder) for value in step.values() if value is not None]  # type: ignore[attr-defined]
        for folder in folders
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=0.02)  # features differ by up to .4% of their row's largest
    assert both[0] != both[1]


def test_the_defaults_that_the_help_of_scenes_shows_are_those_of_the_scenes() -> None:
    shown = {name: option.default for name, option in inspect.signature(scenes).parameters.items()}
    wanted = {option.name: option.default for option in fields(SceneOptions)}
    assert wanted.items() <= shown.items()
