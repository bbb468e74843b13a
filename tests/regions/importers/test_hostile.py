"""Sources made to harm: files that are none, arrays larger than memory, and references to other files."""

import io
import json
import os
import resource
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import msgpack
import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.importers import tsv
from dimvl.regions.importers.common import Assembler
from dimvl.regions.importers.lmdb import unpack
from dimvl.regions.importers.npz import UNITER, read_npz
from dimvl.regions.importers.run import FORMATS, import_source, open_source
from dimvl.regions.importers.tsv import TsvFile
from tests.regions.importers.written import (
    WRITERS,
    image_of,
    images_of,
    packed,
    write_lxmert,
    write_plain,
    write_sizes,
    write_tsv,
    write_vlp,
)


@contextmanager
def little_memory(limit=2**29):
    """Let this process allocate some bytes more, far less than what the files below claim."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Files that are none


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lxmert", "features.tsv"),
        ("lxmert-lineidx-crlf", "features.lineidx"),
        ("oscar-captioning", "train.feature.tsv"),
        ("oscar-captioning", "train.label.tsv"),
        ("oscar-captioning", "train.hw.tsv"),
        ("plain", "plain/17.npz"),
        ("uniter", "npz/17.npz"),
        ("lmdb-npz", "lmdb/data.mdb"),
        ("vlp", "vlp/all_bbox_thresh0.2.h5"),
        ("vlp", "vlp/feat_cls_1000/vg_100dets_feat-17.h5"),
    ],
)
@pytest.mark.parametrize("device", [False, True], ids=["pipe", "device"])
def test_only_regular_files_are_opened(name, file, device, tmp_path, caplog):
    format_name, write = WRITERS[name]
    images = images_of()
    source = write(tmp_path, images)
    sizes = write_sizes(tmp_path / "sizes.json", images)
    (tmp_path / file).unlink()
    os.symlink("/dev/zero", tmp_path / file) if device else os.mkfifo(tmp_path / file)
    message = f"{Path(file).name} is a pipe or a device; give a file on disk"
    if file.endswith(".npz"):
        assert import_source(*open_source(source), tmp_path / "out", "test").skipped == 1
        assert message in caplog.text
    else:
        with pytest.raises(UserError, match=message):
            import_source(*open_source(source, format_name, sizes=sizes), tmp_path / "out", "test")


@pytest.mark.parametrize("option", ["classes", "sizes"])
def test_files_beside_a_source_must_be_regular_too(option, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a pipe or a device"):
        open_source(write_lxmert(tmp_path, images_of()), **{option: tmp_path / "pipe"})


# Arrays larger than memory


def archive(member: bytes | None = None, *, blocks: int = 0, method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as made, made.open("features.npy", "w") as written:
        written.write(member if member is not None else npy((blocks, 2**20), b"", "<f4"))
        for _ in range(blocks):
            written.write(bytes(2**22))
    file.seek(0)
    return file


def npy(shape: tuple[int, ...], content: bytes, dtype: str = "<f4") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue() + content


def understated() -> io.BytesIO:
    """A small archive of 168 MB whose directory says that it unpacks to 1,000 bytes."""
    data = archive(blocks=40).getvalue()
    size = (40 * 2**22 + len(npy((40, 2**20), b""))).to_bytes(4, "little")
    assert data.count(size) >= 1
    return io.BytesIO(data.replace(size, (1000).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: archive(blocks=40), "'features.npy' unpacks to more than 134,217,728 bytes"),
        (understated, "EOFError|Bad CRC|has .* bytes for an array"),
        (lambda: archive(npy((10**12,), b"x")), "an array of shape .1000000000000,. takes more than"),
        (lambda: archive(npy((2**31, 2**31, 2**31), b"x")), "takes more than"),
        (lambda: archive(npy((2**24,), b"x")), "'features.npy' has 1 bytes for an array of shape .16777216,."),
        (lambda: archive(npy((-1,), b"x")), "has 1 bytes for an array of shape"),
        (lambda: archive(npy((1,), b"1234"), method=zipfile.ZIP_LZMA), "compressed in a way that numpy does not write"),
    ],
)
def test_an_archive_that_claims_more_than_it_has_is_refused_unread(made, message):
    file = made()
    with little_memory(2**27), pytest.raises(UserError, match=message):
        read_npz(file, UNITER, "x.npz")


@pytest.mark.parametrize(
    "value",
    [
        b"\xdd" + (10**7).to_bytes(4, "big") + b"\x90" * 10**7,  # an array of empty arrays
        b"\x81\xa8features\xdc\x00\xff" + (b"\xdc\x00\xff" + (b"\xdc\x00\xff" + b"\x90" * 255) * 255) * 255,
        b"\x81\xa8features\xdd" + (6 * 10**6).to_bytes(4, "big") + b"\xca1234" * (6 * 10**6),
        b"\xdf" + (10**7).to_bytes(4, "big") + b"\x01\x80" * 10**7,
        msgpack.packb({"features": packed(np.zeros(1, "<f4")) | {b"shape": [10**6, 10**6]}}),
        msgpack.packb({"features": packed(np.zeros(1, "<f4")) | {b"shape": [2**40]}}),
    ],
)
def test_msgpack_that_would_fill_memory_is_refused(value):
    with (
        little_memory(2**27),
        pytest.raises(UserError, match=r"image 'x' is not msgpack of plain arrays \(.*(exceeds|parts|takes)"),
    ):
        unpack(value, "x")


def test_json_with_millions_of_values_is_refused(tmp_path):
    text = '{"num_boxes": 1, "features": "", "x": [' + "[]," * 3_000_000 + "1]}"
    opened, _ = open_source(write_tsv(tmp_path / "feature.tsv", [("a", text)]))
    entry = next(opened.entries())
    with little_memory(), pytest.raises(UserError, match="its JSON has more than 1,048,576 values"):
        entry.read()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_line_without_end_is_refused(indexed, tmp_path, monkeypatch):
    monkeypatch.setattr(tsv, "MAX_LINE", 2**20)
    file = write_lxmert(tmp_path, images_of())
    size = file.stat().st_size
    with file.open("a") as opened:
        opened.truncate(2**40)  # without taking any room on the disk
    if indexed:
        file.with_suffix(".lineidx").write_text(f"0\n{size}\n")
    with little_memory(), pytest.raises(UserError, match=r"has a line of over 1,048,576 bytes|does not fit"):
        list(TsvFile(file).lines())


def test_an_image_of_a_million_regions_is_refused_before_its_boxes_are_converted():
    boxes = np.broadcast_to(np.zeros(4, dtype=np.float16), (10**8, 4))
    with little_memory(), pytest.raises(UserError, match="has 100,000,000 regions; an image has at most 100,000"):
        Assembler().regions("x", boxes=boxes, features=np.broadcast_to(boxes[:1, :1], (10**8, 1)))


def test_a_long_text_is_shortened_in_messages(tmp_path, caplog):
    long = "n" * 10**5
    objects = [{"rect": [0, 0, 9, 9], "class": long, "feature": ""}]
    (tmp_path / "classes.txt").write_text("cat\n")
    source = write_tsv(tmp_path / "predictions.tsv", [("a", json.dumps({"objects": objects}))])
    with pytest.raises(UserError) as told:
        import_source(*open_source(source, classes=tmp_path / "classes.txt"), tmp_path / "out", "test")
    assert "which is not in the class vocabulary" in str(told.value) and len(str(told.value)) < 1000


# References to other files


def test_hdf5_is_never_led_to_other_files(tmp_path):
    regions = image_of(0)
    path = write_vlp(tmp_path, [regions])
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["a"] = np.zeros((1, 4), dtype="<f4")
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    layout = h5py.VirtualLayout(shape=(1, 4), dtype="<f4")
    layout[:] = h5py.VirtualSource(str(secret), "a", shape=(1, 4))
    with h5py.File(path / "feat_cls_1000" / "vg_100dets_feat071.h5", "a") as file:
        file["external link"] = h5py.ExternalLink(str(secret), "/a")
        file["soft link"] = h5py.SoftLink(f"/{regions.image_id}")
        file.create_dataset("storage", (1, 4), "<f4", external=[(str(tmp_path / "secret.bin"), 0, 16)])
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (10**6, 10**6), "<f4", chunks=(100, 100))
    source = FORMATS["vlp-hdf5"](path, Assembler())
    told = {}
    for entry in source.entries():
        with little_memory(), pytest.raises(UserError) as error:
            entry.read()
        told[entry.image_id] = str(error.value)
    for name in ("external link", "soft link", "storage", "virtual"):
        assert "only as a link to another place or file, which is not followed" in told[name]
    assert "takes more than 134,217,728 bytes" in told["huge"]


def test_a_first_file_that_cannot_be_read_does_not_hide_the_format(tmp_path):
    source = write_plain(tmp_path, images_of())
    (source / "0.npz").write_bytes(b"damaged")
    report = import_source(*open_source(source), tmp_path / "out", "test")
    assert (report.done, report.skipped) == (6, 1)
