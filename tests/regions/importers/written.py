"""Synthetic regions, and a small writer of every imported format, which writes like the format's own tools.

Sizes are powers of two and scores multiples of 1/32, so that half precision holds every number exactly and imported
regions can be compared bit for bit. Every writer reverses the order of the regions, so the importer must sort them.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dimvl.regions.importers.common import Assembler
from dimvl.regions.importers.given import Sizes
from dimvl.regions.importers.run import FORMATS, ImportReport, import_source, open_source
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.vocabulary import Vocabulary

CLASSES = "cat\ndog,hound\nbird\n"
ATTRIBUTES = "red\nbig,large\n"
IDS = ("COCO_val2014_000000000071", "17", "été-猫", "a b", "x.y", "empty")
WIDTH = 4


def image_of(number: int) -> Regions:
    """Regions of an image; the last of three or more has no class, and the last image has no regions."""
    random = np.random.default_rng([3, number])
    count = 0 if IDS[number % len(IDS)] == "empty" else 1 + number % 4
    size = np.array([64, 32] if number % 2 else [32, 128])
    corners = np.sort(random.integers(0, size, (count, 2, 2)), axis=1).reshape(count, 4)
    best = (np.arange(16, 16 - count, -1) / 32)[:, None]
    class_ids = random.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
    class_scores = best * [1, 0.5, 0.25]
    if count > 2:
        class_ids[-1], class_scores[-1] = -1, 0
    name = IDS[number % len(IDS)] if number < len(IDS) else f"image-{number}"
    return Regions(
        image_id=name,
        width=int(size[0]),
        height=int(size[1]),
        boxes=(corners / np.tile(size, 2)).astype(np.float32),
        features=random.normal(size=(count, WIDTH)).astype(np.float16),
        class_ids=class_ids.astype(np.int16),
        class_scores=class_scores.astype(np.float16),
        attribute_ids=np.tile([1, 0, -1], (count, 1)).astype(np.int16),
        attribute_scores=np.tile([0.75, 0.25, 0], (count, 1)).astype(np.float16),
    )


def images_of(count: int = len(IDS)) -> list[Regions]:
    return [image_of(number) for number in range(count)]


def expected(regions: Regions, *, class_columns: int, attribute_columns: int, size_known: bool = True) -> Regions:
    """The part of an image that a format can represent."""
    return replace(
        regions,
        width=regions.width if size_known else 1,
        height=regions.height if size_known else 1,
        class_ids=regions.class_ids[:, :class_columns],
        class_scores=regions.class_scores[:, :class_columns],
        attribute_ids=regions.attribute_ids[:, :attribute_columns],
        attribute_scores=regions.attribute_scores[:, :attribute_columns],
    )


def by_id(store: Path) -> dict[str, Regions]:
    opened = RegionStore(store)
    return {(regions := opened.read(position)).image_id: regions for position in range(len(opened))}


def assembler_of(folder: Path, sizes: Path | None = None, *, attributes: bool = True) -> Assembler:
    (folder / "classes.txt").write_text(CLASSES)
    (folder / "attributes.txt").write_text(ATTRIBUTES)
    return Assembler(
        Vocabulary.read(folder / "classes.txt"),
        Vocabulary.read(folder / "attributes.txt") if attributes else None,
        Sizes(sizes) if sizes is not None else None,
    )


def imported(source: Path, format_name: str, out: Path, assembler: Assembler) -> dict[str, Regions]:
    import_source(FORMATS[format_name](source, assembler), assembler, out, "test")
    return by_id(out)


def import_file(source: Path, out: Path, **options: object) -> ImportReport:
    opened, assembler = open_source(source, **options)
    return import_source(opened, assembler, out, "test")


def write_sizes(file: Path, images: Sequence[Regions]) -> Path:
    records = [{"id": regions.image_id, "width": regions.width, "height": regions.height} for regions in images]
    file.write_text(json.dumps({"images": records}))
    return file


# Writers: each gets a folder and images and returns the source.


def b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def pixels(regions: Regions) -> np.ndarray:
    return (regions.boxes * np.tile([regions.width, regions.height], 2)).astype("<f4")


def lxmert_line(regions: Regions, boxes: np.ndarray | None = None) -> str:
    boxes = pixels(regions) if boxes is None else boxes
    columns = (
        *(regions.image_id, regions.height, regions.width),
        *(b64(regions.class_ids[::-1, 0].astype("<i8")), b64(regions.class_scores[::-1, 0].astype("<f4"))),
        *(b64(regions.attribute_ids[::-1, 0].astype("<i8")), b64(regions.attribute_scores[::-1, 0].astype("<f4"))),
        *(len(regions), b64(boxes[::-1]), b64(regions.features[::-1].astype("<f4"))),
    )
    return "\t".join(map(str, columns))


def write_lxmert(folder: Path, images: Sequence[Regions], end: str = "\n") -> Path:
    file = folder / "features.tsv"
    file.write_bytes("".join(lxmert_line(regions) + end for regions in images).encode())
    return file


def write_lxmert_fractions(folder: Path, images: Sequence[Regions]) -> Path:
    file = folder / "features.tsv"
    file.write_bytes("".join(lxmert_line(regions, regions.boxes) + "\n" for regions in images).encode())
    return file


def write_indexed_lxmert(folder: Path, images: Sequence[Regions]) -> Path:
    file = write_lxmert(folder, images, "\r\n")
    write_lineidx(file)
    return file


def write_lineidx(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    file.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))


def with_six(regions: Regions) -> np.ndarray:
    """Rows of features as in Oscar, followed by box, width and height."""
    boxes = regions.boxes
    return np.concatenate([regions.features, boxes, boxes[:, 2:] - boxes[:, :2]], axis=1)[::-1].astype("<f4")


def oscar_objects(regions: Regions, *, with_features: bool = False) -> list[dict[str, object]]:
    """Labels of an image; regions without a class have none, unless every region needs one."""
    names, attributes = ("cat", "dog", "bird"), ("red", "large")
    objects = []
    for row in range(len(regions)):
        if regions.class_ids[row, 0] >= 0 or with_features:
            score = float(regions.class_scores[row, 0])
            objects.append(
                {
                    "rect": pixels(regions)[row].tolist(),
                    "class": names[regions.class_ids[row, 0]],
                    "conf": score,
                    "attributes": ["__no_attribute__", *(attributes[index] for index in (0, 1))],
                    "attr_scores": [0.9, 0.25, 0.75],
                }
            )
            if with_features:
                objects[-1]["feature"] = b64(regions.features[row].astype("<f4"))
    return objects


def write_tsv(file: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


def write_oscar_captioning(folder: Path, images: Sequence[Regions]) -> Path:
    rows = [
        (regions.image_id, json.dumps({"num_boxes": len(regions), "features": b64(with_six(regions))}))
        for regions in images
    ]
    write_lineidx(write_tsv(folder / "train.feature.tsv", rows))
    labels = [(regions.image_id, json.dumps(oscar_objects(regions))) for regions in reversed(images)]
    write_tsv(folder / "train.label.tsv", labels)
    sizes = [(image.image_id, json.dumps([{"height": image.height, "width": image.width}])) for image in images]
    write_tsv(folder / "train.hw.tsv", sizes)
    return folder


def write_oscar_columns(folder: Path, images: Sequence[Regions]) -> Path:
    rows = [(regions.image_id, len(regions), b64(with_six(regions))) for regions in images]
    write_tsv(folder / "features.tsv", rows)
    labels = [
        (image.image_id, json.dumps({"image_h": image.height, "image_w": image.width, "objects": oscar_objects(image)}))
        for image in images
    ]
    write_lineidx(write_tsv(folder / "predictions.tsv", labels))
    return folder / "features.tsv"


def write_oscar_predictions(folder: Path, images: Sequence[Regions]) -> Path:
    rows = []
    for regions in images:
        objects = oscar_objects(regions, with_features=True)[::-1]
        rows.append((regions.image_id, json.dumps({"objects": objects, "relations": None})))
    return write_tsv(folder / "predictions.tsv", rows)


def soft_labels(regions: Regions) -> np.ndarray:
    """Dense distribution (R, 4), the background first."""
    dense = np.zeros((len(regions), 4), dtype=np.float32)
    for row in range(len(regions)):
        known = regions.class_ids[row] >= 0
        dense[row, 1 + regions.class_ids[row][known]] = regions.class_scores[row][known]
    dense[:, 0] = 1 - dense.sum(axis=1)
    return dense


def uniter_arrays(regions: Regions, columns: int = 6) -> dict[str, np.ndarray]:
    sides = regions.boxes[:, 2:] - regions.boxes[:, :2]
    norm_bb = np.concatenate([regions.boxes, sides, sides[:, :1] * sides[:, 1:]], axis=1)[:, :columns]
    return {
        "features": regions.features[::-1],
        "norm_bb": norm_bb[::-1].astype(np.float32),
        "conf": regions.class_scores[::-1, 0].astype(np.float32),
        "soft_labels": soft_labels(regions)[::-1].astype(np.float16),
    }


def write_uniter(folder: Path, images: Sequence[Regions]) -> Path:
    (folder / "npz").mkdir()
    for number, regions in enumerate(images):
        np.savez_compressed(folder / "npz" / f"{regions.image_id}.npz", **uniter_arrays(regions, 6 + number % 2))
    return folder / "npz"


def write_plain(folder: Path, images: Sequence[Regions]) -> Path:
    (folder / "plain").mkdir()
    for number, regions in enumerate(images):
        names = ("class_ids", "class_scores", "attribute_ids", "attribute_scores")
        np.savez(
            folder / "plain" / f"{regions.image_id}.npz",
            features=regions.features[::-1].astype(np.float64 if number % 2 else np.float32),
            boxes=pixels(regions)[::-1].astype(np.int32),
            size=[regions.width, regions.height],
            **{name: getattr(regions, name)[::-1] for name in names},
        )
    return folder / "plain"


def packed(array: np.ndarray) -> dict[bytes, object]:
    """An array as msgpack_numpy writes it."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def lmdb_value(regions: Regions, folder: Path, *, compressed: bool) -> bytes:
    import msgpack

    arrays = {name: array.astype(np.float16) for name, array in uniter_arrays(regions).items()}
    if not compressed:
        return msgpack.packb({name: packed(array) for name, array in arrays.items()}, use_bin_type=True)
    file = folder / "value.npz"
    np.savez_compressed(file, **arrays, allow_pickle_=np.array(True))  # an unrelated array
    return file.read_bytes()


def _write_lmdb(folder: Path, images: Sequence[Regions], *, compressed: bool) -> Path:
    import lmdb

    path = folder / "lmdb"
    with lmdb.open(str(path), map_size=2**22) as environment, environment.begin(write=True) as transaction:
        for regions in images:
            transaction.put(f"{regions.image_id}.npz".encode(), lmdb_value(regions, folder, compressed=compressed))
        names = [f"{regions.image_id}.npz" for regions in images]
        transaction.put(b"__keys__", json.dumps(names).encode())
    return path


def write_lmdb_msgpack(folder: Path, images: Sequence[Regions]) -> Path:
    return _write_lmdb(folder, images, compressed=False)


def write_lmdb_npz(folder: Path, images: Sequence[Regions]) -> Path:
    return _write_lmdb(folder, images, compressed=True)


def write_vlp(folder: Path, images: Sequence[Regions]) -> Path:
    import h5py

    path = folder / "vlp"
    (path / "feat_cls_1000").mkdir(parents=True)
    with h5py.File(path / "all_bbox_thresh0.2.h5", "w") as boxes:
        for regions in images:
            prefix = path / "feat_cls_1000" / "vg_100dets"
            suffix = f"{regions.image_id:_>3}"[-3:].replace("_", "-")
            classes = (regions.class_ids[:, :1] + 1).astype(np.float32)
            rows = np.concatenate([pixels(regions), classes, regions.class_scores[:, :1]], axis=1)
            boxes.create_dataset(regions.image_id, data=rows[::-1])
            with h5py.File(f"{prefix}_feat{suffix}.h5", "a") as features:
                features.create_dataset(regions.image_id, data=regions.features[::-1])
            with h5py.File(f"{prefix}_cls{suffix}.h5", "a") as distributions:
                distributions.create_dataset(regions.image_id, data=soft_labels(regions)[::-1])
    return path


WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Regions]], Path]]] = {
    "lxmert": ("lxmert-tsv", write_lxmert),
    "lxmert-fractions": ("lxmert-tsv", write_lxmert_fractions),
    "lxmert-lineidx-crlf": ("lxmert-tsv", write_indexed_lxmert),
    "oscar-captioning": ("oscar-tsv", write_oscar_captioning),
    "oscar-columns": ("oscar-tsv", write_oscar_columns),
    "oscar-predictions": ("oscar-tsv", write_oscar_predictions),
    "plain": ("npz", write_plain),
    "uniter": ("uniter-npz", write_uniter),
    "lmdb-msgpack": ("uniter-lmdb", write_lmdb_msgpack),
    "lmdb-npz": ("uniter-lmdb", write_lmdb_npz),
    "vlp": ("vlp-hdf5", write_vlp),
}
COLUMNS = {  # kept classes and attributes
    "lxmert-tsv": (1, 1),
    "oscar-tsv": (1, 3),
    "npz": (3, 3),
    "uniter-npz": (3, 0),
    "uniter-lmdb": (3, 0),
    "vlp-hdf5": (3, 0),
}
WITHOUT_SIZES = {"uniter-npz", "uniter-lmdb", "vlp-hdf5"}
