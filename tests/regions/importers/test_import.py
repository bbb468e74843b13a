"""Importing a source: resuming, skipping bad images, and the command line."""

import logging
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler
from dimvl.regions.importers.run import (
    FORMATS,
    extractor_of,
    first_regions,
    import_regions,
    import_source,
    open_source,
    recognise,
)
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.importers.written import (
    IDS,
    WRITERS,
    assembler_of,
    by_id,
    image_of,
    images_of,
    imported,
    lxmert_line,
    write_lxmert,
    write_plain,
    write_sizes,
)
from tests.regions.store.synthetic_store import assert_same, contents

SHARD_BYTES = 400


def write_until(source: Path, format_name: str, out: Path, folder: Path, sizes: Path, kill_after: int = 0) -> None:
    """Import with small shards, and be killed after a number of images."""
    assembler = assembler_of(folder, sizes, attributes=False)
    opened = FORMATS[format_name](source, assembler)
    extractor = extractor_of("test", first_regions(opened), assembler)

    def progress(done: int, total: int) -> None:
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    with RegionStoreWriter(out, extractor, shard_bytes=SHARD_BYTES) as writer:
        import_regions(opened, writer, progress)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ["lxmert-lineidx-crlf", "plain", "lmdb-msgpack", "vlp"])
def test_a_killed_import_resumes_to_the_same_store(name, tmp_path):
    format_name, write = WRITERS[name]
    images = images_of(30)
    source = write(tmp_path, images)
    sizes = write_sizes(tmp_path / "sizes.json", images)
    write_until(source, format_name, tmp_path / "undisturbed", tmp_path, sizes)
    for kill_after in (1, 9, 22):
        out = tmp_path / f"killed-{kill_after}"
        pid = os.fork()
        if not pid:
            write_until(source, format_name, out, tmp_path, sizes, kill_after)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert len(RegionStore(out)) < kill_after
        write_until(source, format_name, out, tmp_path, sizes)
        assert contents(out) == contents(tmp_path / "undisturbed")


def test_an_image_is_there_already_only_if_its_content_is_the_same(tmp_path):
    images = images_of(12)
    source, assembler = open_source(write_lxmert(tmp_path, images))
    import_source(source, assembler, tmp_path / "out", "test", feature_dtype="int8")
    again = import_source(source, assembler, tmp_path / "out", "test", feature_dtype="int8")
    assert (again.done, again.already, again.skipped) == (0, 12, 0)
    before = contents(tmp_path / "out")
    for change in (
        {"features": -images[7].features},
        {"boxes": images[7].boxes / 2},
        {"width": 2 * images[7].width},
    ):
        write_lxmert(tmp_path, [*images[:7], replace(images[7], **change), *images[8:]])
        with pytest.raises(UserError, match=r"'image-7' is in region store .* other content under the same id; import"):
            import_source(*open_source(tmp_path / "features.tsv"), tmp_path / "out", "test", feature_dtype="int8")
        assert contents(tmp_path / "out") == before


def test_bad_images_are_named_counted_and_skipped(tmp_path, caplog):
    lines = [lxmert_line(image) for image in images_of()]
    changed = lxmert_line(replace(image_of(1), features=-image_of(1).features))
    bad = lxmert_line(replace(image_of(1), image_id="bad-box"), np.array([[8, 8, 99, 9]] * 2, dtype="<f4"))
    wide = replace(image_of(1), image_id="wide", features=np.zeros((2, 9), dtype=np.float16))
    (tmp_path / "x.tsv").write_text("\n".join([bad, *lines[:3], lxmert_line(wide), *lines[3:], changed]))
    source, assembler = open_source(tmp_path / "x.tsv")
    report = import_source(source, assembler, tmp_path / "out", "test")
    assert (report.done, report.already, report.skipped) == (6, 0, 3)
    assert sorted(by_id(tmp_path / "out")) == sorted(IDS)
    skipped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert "image 'bad-box' has box 0 (8, 8, 99, 9)" in skipped[0]
    assert "image 'wide' has features of width 9, but the store has 4" in skipped[1]
    assert "image '17' is in the source twice; its first regions are kept" in skipped[2]
    again = import_source(source, assembler, tmp_path / "out", "test")
    assert (again.done, again.already, again.skipped) == (0, 6, 3)


def test_a_good_image_after_a_bad_one_with_its_id_is_imported(tmp_path):
    good = lxmert_line(image_of(1))
    (tmp_path / "x.tsv").write_text(f"{lxmert_line(image_of(0))}\n{good[:-20]}\n{good}\n")
    source, assembler = open_source(tmp_path / "x.tsv")
    report = import_source(source, assembler, tmp_path / "out", "test")
    assert (report.done, report.skipped) == (2, 1)


def test_a_source_without_a_readable_image_is_an_error_and_makes_no_store(tmp_path):
    (tmp_path / "x.tsv").write_text("a\t" * 9 + "a\n" * 200)
    source, assembler = open_source(tmp_path / "x.tsv")
    with pytest.raises(UserError, match=r"no image of .*x.tsv can be imported; the first problem: .*num_boxes"):
        import_source(source, assembler, tmp_path / "out", "test")
    assert not (tmp_path / "out").exists()


def test_a_source_without_regions_is_an_error(tmp_path):
    source, assembler = open_source(write_lxmert(tmp_path, [image_of(IDS.index("empty"))]))
    with pytest.raises(UserError, match="none of its images has regions"):
        import_source(source, assembler, tmp_path / "out", "test")


def test_several_sources_of_one_extractor_make_one_store(tmp_path):
    images = images_of()
    for part in (images[:2], images[2:]):
        imported(write_lxmert(tmp_path, part), "lxmert-tsv", tmp_path / "out", assembler_of(tmp_path))
    assert sorted(by_id(tmp_path / "out")) == sorted(IDS)


def test_another_name_width_or_vocabulary_is_another_extractor(tmp_path):
    assembler, regions = assembler_of(tmp_path), image_of(1)
    own = extractor_of("a", regions, assembler)
    assert own.conflict(extractor_of("a", image_of(2), assembler)) is None
    wider = replace(regions, features=np.zeros((2, 9), dtype=np.float16))
    for other in (
        extractor_of("b", regions, assembler),
        extractor_of("a", wider, assembler),
        extractor_of("a", regions, Assembler()),
    ):
        assert own.conflict(other)


def test_a_disk_that_is_too_small_is_an_error_before_an_image_is_written(tmp_path, monkeypatch):
    source, assembler = open_source(write_lxmert(tmp_path, images_of(30)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"would take about .* for \d+ images .* free"):
        import_source(source, assembler, tmp_path / "out", "test")
    assert len(RegionStore(tmp_path / "out")) == 0


def test_coco_ids_are_the_numbers_at_the_end_of_ids(tmp_path, caplog):
    source, assembler = open_source(write_plain(tmp_path, images_of()), coco_ids=True)
    report = import_source(source, assembler, tmp_path / "out", "test")
    assert sorted(by_id(tmp_path / "out")) == ["17", "71"]
    assert report.skipped == 4
    assert "image 'x.y' has no number at its end, as --coco-ids needs" in caplog.text


def test_progress_ends_at_the_total(tmp_path):
    for name in ("lxmert", "lxmert-lineidx-crlf", "lmdb-npz"):
        folder = tmp_path / name
        folder.mkdir()
        source, assembler = open_source(WRITERS[name][1](folder, images_of()))
        seen = []
        import_source(
            source, assembler, folder / "out", "test", lambda done, total, seen=seen: seen.append((done, total))
        )
        assert seen[-1] == (source.total, source.total)
        assert sorted(seen) == seen and seen.count(seen[-1]) == 1


# Broken sources


@pytest.mark.parametrize("index", ["0\nx\n", "5\n9\n", "0\n0\n", "0\n7\n", f"0\n{10**9}\n", "9" * 30, ""])
def test_an_index_that_does_not_fit_is_rejected(index, tmp_path):
    source = write_lxmert(tmp_path, images_of())
    source.with_suffix(".lineidx").write_text(index)
    with pytest.raises(UserError, match=r"features.lineidx does not fit features.tsv: .*; delete it"):
        open_source(source)


def test_a_truncated_lmdb_is_rejected(tmp_path):
    path = WRITERS["lmdb-npz"][1](tmp_path, images_of())
    file = path / "data.mdb"
    for size in (file.stat().st_size - 4096, 5000, 100, 0):
        os.truncate(file, size)
        with pytest.raises(UserError, match=r"data.mdb cannot be read as LMDB \(.*\)"):
            open_source(path)


def test_missing_files_of_vlp_are_named(tmp_path):
    images = [image_of(0)]
    path = WRITERS["vlp"][1](tmp_path, images)
    sizes = write_sizes(tmp_path / "sizes.json", images)
    (path / "feat_cls_1000" / "vg_100dets_cls071.h5").unlink()
    with pytest.raises(UserError, match=r"lacks the file \*_cls071.h5"):
        imported(path, "vlp-hdf5", tmp_path / "out", assembler_of(tmp_path, sizes, attributes=False))
    (path / "all_bbox_thresh0.2.h5").unlink()
    with pytest.raises(UserError, match=r"lacks the file \*_bbox071.h5, or one other .h5 file"):
        open_source(path)


def test_a_file_that_is_not_hdf5_is_named(tmp_path):
    path = WRITERS["vlp"][1](tmp_path, [image_of(0)])
    (path / "feat_cls_1000" / "vg_100dets_feat071.h5").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"vg_100dets_feat071.h5 cannot be read as HDF5"):
        open_source(path)


def test_an_unrecognised_source_asks_for_a_format(tmp_path):
    (tmp_path / "x.tsv").write_text("a\tb\tc\td\n")
    (tmp_path / "y.bin").write_text("x")
    for path in (tmp_path / "x.tsv", tmp_path / "y.bin", tmp_path):
        with pytest.raises(UserError, match="is not recognised; name it with --format"):
            recognise(path)


# Memory


def test_memory_does_not_grow_with_the_source(tmp_path):
    """20 and 200 images of 32 kB; only one id per image may be added. Of three tries: another thread may allocate."""
    regions = replace(image_of(2), features=np.ones((3, 4096), dtype=np.float16))

    def peak(count: int, number: int) -> int:
        (tmp_path / "x.tsv").write_text(
            "".join(lxmert_line(replace(regions, image_id=str(number))) + "\n" for number in range(count))
        )
        opened = FORMATS["lxmert-tsv"](tmp_path / "x.tsv", Assembler())
        extractor = extractor_of("test", first_regions(opened), Assembler())
        with RegionStoreWriter(tmp_path / f"{count}-{number}", extractor, shard_bytes=10**5) as writer:
            tracemalloc.start()
            import_regions(opened, writer)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    few, many = (min(peak(count, number) for number in range(3)) for count in (20, 200))
    assert many < few + 180 * 1500


# The command


def dimvl(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "dimvl", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


def test_the_command_imports_resumes_and_names_what_it_skips(tmp_path):
    source = write_lxmert(tmp_path, images_of())
    assembler_of(tmp_path)
    names = ("--classes", tmp_path / "classes.txt", "--attributes", tmp_path / "attributes.txt")
    code, out, err = dimvl("import", source, tmp_path / "out", *names, "--extractor", "mine")
    assert (code, out.splitlines()[-1]) == (0, f"6 images done, 0 already there, 0 skipped: {tmp_path / 'out'}"), err
    assert "; 0 to 4 regions per image (mean 1.833), 1 images without regions; 81.8 % of regions with a class" in out
    assert RegionStore(tmp_path / "out").extractor.name == "mine"
    with source.open("a") as file:
        file.write(lxmert_line(replace(image_of(1), image_id="new")) + "\ncut\t4\n")
    code, out, err = dimvl("import", source, tmp_path / "out", *names, "--extractor", "mine")
    assert (code, out.splitlines()[-1]) == (1, f"1 image done, 6 already there, 1 skipped: {tmp_path / 'out'}"), err
    assert "skipped: line 8 (image 'cut') has 2 columns" in err and "Traceback" not in err
    got = by_id(tmp_path / "out")["new"]
    assert_same(got, replace(by_id(tmp_path / "out")["17"], image_id="new"))


def test_separate_stores_of_the_parts_of_a_source_equal_the_whole(tmp_path):
    source = write_lxmert(tmp_path, images_of())
    for part in (1, 2):
        arguments = ("--part", f"{part}/2", "--dtype", "int8", "--extractor", "mine")
        code, out, err = dimvl("import", source, tmp_path / f"part-{part}", *arguments)
        assert code == 0 and "\n3 images done, 0 already there, 0 skipped" in out
        assert " will take about " in err
    assert dimvl("import", source, tmp_path / "whole", "--dtype", "int8", "--extractor", "mine")[0] == 0
    whole, parts = RegionStore(tmp_path / "whole"), RegionStore([tmp_path / "part-1", tmp_path / "part-2"])
    assert len(parts) == len(whole) == 6 and whole.folders[0].manifest.feature_dtype == "int8"
    for position in range(6):
        regions = whole.read(position)
        assert_same(parts.read(parts.position(regions.image_id)), regions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.tsv", "out"), "missing.tsv does not exist"),
        (("features.tsv", "out", "--format", "zip"), "--format zip is not known; choose one of lxmert-tsv"),
        (("features.tsv", "out", "--classes", "none.txt"), "none.txt does not exist"),
        (("npz", "out", "--attributes", "attributes.txt"), "uniter-npz has no attributes, so --attributes"),
        (("features.tsv", "other"), "other is neither empty nor a region store"),
        (("npz", "out", "--classes", "short.txt"), "class probabilities of shape"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_lxmert(tmp_path, images_of())
    WRITERS["uniter"][1](tmp_path, images_of())
    assembler_of(tmp_path)
    (tmp_path / "short.txt").write_text("cat\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    import dimvl.cli

    monkeypatch.setattr(sys, "argv", ["dimvl", "import", *arguments])
    printed = []
    monkeypatch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as ended:
        dimvl.cli.main()
    assert ended.value.code == 2
    assert printed[-1].startswith("error: ") and message in printed[-1]
