"""`dimvl extract` and `dimvl export` with every kind of detector, in this process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dimvl.data.annotations.reading import read_captions
from dimvl.regions.naming.folds import Folds
from dimvl.regions.records import ARRAYS
from dimvl.regions.store import RegionStore
from tests.cli.calls import Result, Run
from tests.concepts.made import make_namer
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.regions.backbones.tiny_backbones import transformers_folder
from tests.regions.detectors.tiny_detectors import CLASSES, TORCHVISION, save_transformers, torchvision_file
from tests.regions.sources.shards import write_tar


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 1 to 3, a COCO file of their boxes, weights for torchvision, folders of transformers and dimvl."""
    place = tmp_path_factory.mktemp("place")
    (place / "images").mkdir()
    for number in (1, 2, 3):
        make_image(number).save(place / "images" / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png", "width": 90, "height": 70} for number in (1, 2, 3)]
    boxes = [{"image_id": number, "category_id": 7, "bbox": [9, 7, 45, 35]} for number in (1, 2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "lamp"}]}
    (place / "boxes.json").write_text(json.dumps(content))
    torchvision_file(place)
    save_transformers(place / "detr", "detr")
    transformers_folder(place / "vit", "vit")
    make_detector().save(place / "mine")
    return place


def detector_of(place: Path, kind: str) -> tuple[object, ...]:
    if kind == "torchvision":
        return ("--where", TORCHVISION, "--weights", place / "weights-0.pth", "--classes", place / "names.txt")
    return ("--where", {"scenes": "scenes", "detr": place / "detr", "mine": place / "mine"}[kind])


def refused(result: Result, *words: str) -> None:
    lines = result.err.strip().splitlines()
    assert result.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("kind", ["scenes", "mine", "torchvision", "detr"])
def test_every_kind_of_detector_writes_a_store_with_the_given_settings(
    run: Run, place: Path, tmp_path: Path, kind: str
) -> None:
    options = ("--threshold", 0.3, "--min-regions", 2, "--max-regions", 4, "--nms", 0.4, "--whole-image")
    sizes = ("--shortest-side", 48, "--batch-size", 2, "--workers", 2)
    result = run("extract", place / "images", tmp_path / "out", *detector_of(place, kind), *options, *sizes)
    assert result.code == 0 and "3 images done, 0 already there, 0 skipped" in result.out, result
    assert "3 of 3 images, " in result.err and "/s" in result.err
    store = RegionStore(tmp_path / "out")
    parameters = dict(store.extractor.parameters)
    side = parameters.pop("side", None) or parameters.pop("shortest_side")
    asked = {"score_threshold": 0.3, "nms_threshold": 0.4, "min_regions": 2, "max_regions": 4, "whole_image": True}
    assert side == 48 and parameters.items() >= asked.items()
    for position in range(3):
        regions = store.read(position)
        assert 1 <= len(regions) <= 5 and regions.boxes[-1].tolist() == [0, 0, 1, 1]
    assert run("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("option", ["--threshold", "--nms", "--max-regions", "--shortest-side"])
def test_a_setting_out_of_range_is_named_as_its_option(run: Run, place: Path, tmp_path: Path, option: str) -> None:
    refused(
        run("extract", place / "images", tmp_path / "out", "--where", "scenes", option, -5), f"error: {option} is -5"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["scenes", "torchvision", "detr"])
def test_a_side_that_would_exhaust_memory_is_rejected(run: Run, place: Path, tmp_path: Path, kind: str) -> None:
    call = ("extract", place / "images", tmp_path / "out", *detector_of(place, kind), "--shortest-side")
    refused(run(*call, 100_000), "--shortest-side is 100000; give a whole number from 1 to 4,096")
    refused(run(*call, 0), "side is 0; give a whole number from 1 to 4,096")


def test_top_k_sets_the_number_of_regions_of_every_image(run: Run, place: Path, tmp_path: Path) -> None:
    for kind in ("torchvision", "detr"):
        assert run("extract", place / "images", tmp_path / kind, *detector_of(place, kind), "--top-k", 7).code == 0
        assert RegionStore(tmp_path / kind).num_regions(np.arange(3)).tolist() == [7, 7, 7]


def test_separate_stores_of_the_parts_of_a_folder_equal_the_whole(
    run: Run, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = (*detector_of(place, "torchvision"), "--batch-size", 1)
    run("extract", place / "images", tmp_path / "whole", *arguments)
    for part in (1, 2):
        result = run("extract", place / "images", tmp_path / f"{part}", *arguments, "--part", f"{part}/2")
        assert result.out.startswith(("2 images done", "1 image done")[part - 1])
        assert f" MB for {3 - part} images of" in caplog.text
    whole, parts = RegionStore(tmp_path / "whole"), RegionStore([tmp_path / "1", tmp_path / "2"])
    assert len(parts) == 3
    for name in ("1", "2", "3"):
        one, other = (store.read(store.position(name)) for store in (whole, parts))
        assert all(np.array_equal(getattr(one, array), getattr(other, array)) for array in ARRAYS)
    for wrong in ("3/2", "0/2", "half"):
        result = run("extract", place / "images", tmp_path / "out", *arguments, "--part", wrong)
        assert result.code == 2 and f"--part is {wrong}; give K/N" in result.err


@pytest.fixture
def shards(place: Path, tmp_path: Path) -> Path:
    """Two tar files with images 1 and 2, and 3, each with a caption."""
    (tmp_path / "shards").mkdir()
    for number, names in enumerate(("12", "3")):
        members = {f"{name}.png": (place / "images" / f"{name}.png").read_bytes() for name in names}
        write_tar(tmp_path / "shards" / f"{number}.tar", members | {f"{name}.txt": b"a shape" for name in names})
    return tmp_path / "shards"


def test_processes_of_a_launcher_write_parts_of_shards_and_one_command_joins_them(
    run: Run, place: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = (*detector_of(place, "mine"), "--batch-size", 1)
    assert run("extract", place / "images", tmp_path / "whole", *detector).code == 0
    captions_out = ("--captions-out", tmp_path / "captions.jsonl")
    call = ("extract", shards / "{0..1}.tar", tmp_path / "out", *detector, *captions_out)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for number, lacking in ((1, "has no parts"), (2, "lacks part-2-of-2; extract with --part 2/2")):
        refused(run("join", tmp_path / "out"), lacking)
        monkeypatch.setenv("SLURM_PROCID", str(number - 1))
        result = run(*call)
        assert result.code == 0 and f"part {number}/2 (srun): {tmp_path / 'out'}.part-{number}-of-2" in result.out
        assert (" of 1 MB" in result.err) == (number == 1), "the first process shows its progress"
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    refused(run(*call), "was begun by 2 processes", "join them with `dimvl join`")
    result = run("join", tmp_path / "out")
    assert result.code == 0 and result.out == f"3 images of 2 stores joined, 0 repeated: {tmp_path / 'out'}\n"
    assert run("verify", tmp_path / "out").code == 0
    whole, joined = RegionStore(tmp_path / "whole"), RegionStore(tmp_path / "out")
    for name in ("1", "2", "3"):
        one, other = (store.read(store.position(name)) for store in (whole, joined))
        assert all(np.array_equal(getattr(one, array), getattr(other, array)) for array in ARRAYS)
    captions = [read_captions(tmp_path / f"captions.part-{part}-of-2.jsonl") for part in (1, 2)]
    assert [[caption.images[0] for caption in part] for part in captions] == [[("1",), ("2",)], [("3",)]]
    result = run(*call)  # continues the joined store
    assert result.code == 0 and "3 captions" in result.out and "0 images done, 3 already there" in result.out


def test_options_of_shards_are_refused_where_they_do_not_apply(run: Run, place: Path, tmp_path: Path) -> None:
    call = ("extract", place / "images", tmp_path / "out", *detector_of(place, "mine"))
    refused(run(*call, "--captions-out", "c.jsonl"), "--captions-out c.jsonl needs shards")
    refused(run(*call, "--caption-field", "text"), "--caption-field text says where captions are; give --captions-out")
    refused(run(*call, "--image-column", "image"), "--image-column names a column of Parquet files")
    refused(run("extract", place / "{0..9}.tar", *call[2:]), "0.tar does not exist")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_and_bad_captions_give_exit_code_1(
    run: Run, place: Path, tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call = ("extract", shards, tmp_path / "out", *detector_of(place, "mine"), "--captions-out", tmp_path / "c.jsonl")
    write_tar(shards / "2.tar", {"1.txt": b"\xff"})
    result = run(*call)
    assert result.code == 1 and "3 captions, 1 left out, such as: 1.txt in " in result.out, result
    (shards / "2.tar").write_bytes(b"torn")
    result = run(*call)
    assert result.code == 1 and "3 already there, 1 skipped" in result.out
    assert "2.tar is cut off or damaged (truncated header); copy it again" in caplog.text


def test_what_a_folder_has_beside_images_is_told_and_folders_of_images_give_exit_code_1(
    run: Run, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(place / "images", tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").touch()
    result = run("extract", tmp_path / "photos", tmp_path / "one", *detector_of(place, "mine"))
    assert result.code == 0 and "passed over: 1 not images\n3 images done" in result.out
    shutil.copytree(place / "images", tmp_path / "photos" / "more")
    result = run("extract", tmp_path / "photos", tmp_path / "two", *detector_of(place, "mine"))
    assert result.code == 1 and ", 0 skipped" in result.out
    (tmp_path / "photos" / "4.png").symlink_to("nowhere.png")
    result = run("extract", tmp_path / "photos", tmp_path / "three", *detector_of(place, "mine"))
    assert result.code == 1 and "folders with images (more; give them one by one)\n3 images done" in result.out
    assert ", 1 skipped" in result.out and "4.png is a link to something that does not exist" in caplog.text


def test_an_int8_store_is_continued_only_as_int8(run: Run, place: Path, tmp_path: Path) -> None:
    arguments = ("extract", place / "images", tmp_path / "out", *detector_of(place, "torchvision"))
    assert run(*arguments, "--dtype", "int8").code == 0
    store = RegionStore(tmp_path / "out")
    assert json.loads(run("inspect", tmp_path / "out", "--json").out)["feature_dtype"] == "int8"
    assert store.read(0).features.dtype == np.float32
    result = run(*arguments)
    assert result.code == 2 and "holds features as int8, not as float16" in result.err


def test_given_boxes_determine_the_images_and_classes(run: Run, place: Path, tmp_path: Path) -> None:
    result = run(
        *("extract", place / "images", tmp_path / "out", *detector_of(place, "torchvision")),
        *("--boxes", place / "boxes.json"),
    )
    store = RegionStore(tmp_path / "out")
    assert result.code == 0 and store.extractor.classes == ("lamp",) and len(store) == 3
    assert store.read(store.position("1")).class_ids.tolist() == [[0]]
    assert store.read(store.position("3")).class_ids.tolist() == [[-1]]


def test_options_that_would_be_ignored_are_rejected_before_anything_is_written(
    run: Run, place: Path, tmp_path: Path
) -> None:
    begin = ("extract", place / "images", tmp_path / "out")
    for arguments, words in [
        ((), ("--where is missing; give grid, fasterrcnn_resnet50_fpn_v2 or another", "or scenes for")),
        (("--top-k", 3, "--threshold", 0.2), ("--top-k sets", "omit --threshold")),
        (("--top-k", 3, "--max-regions", 2), ("omit --max-regions",)),
        (("--top-k", 0), ("--top-k is 0; give 1 or more",)),
        (("--boxes", place / "boxes.json", "--nms", 0.3), ("--boxes sets the regions; omit --nms",)),
        (("--boxes", place / "boxes.json", "--where", place / "detr"), ("detr cannot describe given boxes",)),
        (("--boxes", place / "names.txt"), ("is not valid JSON",)),
        (("--weights", "COCO_V1"), ("has its own weights",)),
        (("--longest-side", 100), ("has no setting --longest-side",)),
        (
            ("--where", "grid", "--grid", 3, "--features", place / "vit", "--nms", 0.3),
            ("error: grid, features of vit has no setting --nms",),
        ),
        (("--threshold", 2), ("error: --threshold is 2.0; give a number from 0 to 1",)),
        (("--where", "yolo"), ("neither a folder here nor one of torchvision's",)),
        (("--where", place / "images"), ("detector.json does not exist",)),
    ]:
        detector = () if not arguments or "--where" in arguments else ("--where", "scenes")
        refused(run(*begin, *detector, *arguments), *words)
        assert not (tmp_path / "out").exists(), arguments


def test_a_store_is_not_continued_with_another_threshold(run: Run, place: Path, tmp_path: Path) -> None:
    begin = ("extract", place / "images", tmp_path / "out", *detector_of(place, "detr"))
    assert run(*begin).code == 0
    refused(run(*begin, "--threshold", 0.5), "parameters.score_threshold is 0.2 and 0.5")
    assert "0 images done, 3 already there" in run(*begin).out


@pytest.mark.parametrize("kind", ["torchvision", "detr"])
def test_an_export_predicts_from_an_image_in_an_empty_folder_with_any_detector(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    detector = detector_of(place, kind)
    settings = ("--threshold", 0.35, "--max-regions", 6, "--shortest-side", 50)
    assert run("extract", place / "images", tmp_path / "store", *detector, *settings).code == 0
    store = RegionStore(tmp_path / "store")
    trained = write_run(tmp_path / "run", make_trained(all_abilities(store.extractor)))
    result = run("export", trained, tmp_path / "export", *detector)
    assert result.code == 0, result
    from dimvl.predictor import Predictor

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    predictor = Predictor.from_pretrained(tmp_path / "export", "cpu")
    for number in ("1", "2"):
        seen = predictor.regions(place / "images" / f"{number}.png")
        kept = store.read(store.position(number))  # the export has the settings of the store, not the defaults
        np.testing.assert_allclose(seen.boxes, kept.boxes, atol=1e-5)
        np.testing.assert_allclose(seen.features, kept.features, rtol=4e-3, atol=2e-3)
    result = run("caption", place / "images" / "1.png", "--model", tmp_path / "export")
    assert result.code == 0 and result.out == predictor.caption(place / "images" / "1.png") + "\n"
    assert predictor.explain(place / "images" / "1.png", "is it red").regions[0].name in ("", *CLASSES)


def test_a_detector_of_other_weights_classes_or_sizes_is_not_exported(run: Run, place: Path, tmp_path: Path) -> None:
    assert run("extract", place / "images", tmp_path / "store", *detector_of(place, "mine")).code == 0
    trained = write_run(tmp_path / "run", make_trained(all_abilities(RegionStore(tmp_path / "store").extractor)))
    refused(run("export", trained, tmp_path / "out", *detector_of(place, "detr")), "is not the extractor tiny", "none")
    boxes = ("--boxes", place / "boxes.json")
    assert run("extract", place / "images", tmp_path / "given", *detector_of(place, "mine"), *boxes).code == 0
    given = write_run(tmp_path / "other", make_trained(all_abilities(RegionStore(tmp_path / "given").extractor)))
    refused(run("export", given, tmp_path / "out", *detector_of(place, "mine")), "other classes", "--where")
    assert not (tmp_path / "out").exists()


def test_an_export_without_a_detector_accepts_regions_and_rejects_images(run: Run, place: Path, tmp_path: Path) -> None:
    from dimvl.predictor import Predictor

    assert run("extract", place / "images", tmp_path / "store", *detector_of(place, "mine")).code == 0
    store = RegionStore(tmp_path / "store")
    trained = write_run(tmp_path / "run", make_trained(all_abilities(store.extractor)), description="photographs")
    assert run("export", trained, tmp_path / "out", "--where", "none").code == 0
    assert Predictor.from_pretrained(tmp_path / "out", "cpu").caption(store.read(0))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "has no detector" in card and "photo.png" not in card
    image_file = place / "images" / "1.png"
    refused(run("caption", image_file, "--model", tmp_path / "out"), "give regions: a store, to the commands")


def test_extraction_warns_of_images_that_the_concepts_were_trained_on(
    run: Run, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    namer = make_namer(make_detector().extractor)
    namer.save(tmp_path / "concepts")
    Folds([namer, namer], [["1", "7"], ["3"]]).save(tmp_path / "concepts")
    call = ("extract", place / "images", tmp_path / "out", "--where", place / "mine", "--concepts")
    assert run(*call, tmp_path / "concepts").code == 0
    assert "trained on 2 images of" in caplog.text and "use `dimvl name --folds`" in caplog.text
