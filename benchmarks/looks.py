"""What regions look like: RoIAlign over one map of the image against crops one by one, in accuracy and CPU seconds.

    python -m benchmarks looks --data FOLDER

FOLDER has `images/` and `phrases.jsonl`, people's boxes for phrases of captions with their type (people, clothing,
scene, ...), as Flickr30k Entities. A linear probe (multinomial logistic regression) tells the type of a box from its
feature: it learns on boxes of `train` images and is tested on boxes of `val` images. Only phrases with one type and one
box count. The strength of its regularisation is chosen on a quarter of the `train` images. Intervals are 95%, by a
bootstrap over `val` images; the interval of a difference compares two ways on the same images.

The backbone is EfficientNet-Lite2 with the weights of its package. Ways to look at the boxes of an image:

crops           each box is cut out and scaled to the side of the backbone: one forward pass for each box
map             one forward pass for the image, scaled to a square, and RoIAlign over its map: as `dimvl extract`
last_layer      the same, without the layer before the last halving: 1,280 numbers of 1,400
aspect_kept     the same as map, but the image keeps its aspect at the same number of pixels
side_S          the same as map, but the image is scaled to S x S pixels
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import interleaved, speeds
from dimvl.metrics.intervals import mean_interval
from dimvl.regions.backbones.base import Backbone
from dimvl.regions.backbones.efficientnet_lite import HEAD, PIXELS, EfficientNetLite, Network
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.backbones.pooling import pool
from dimvl.regions.images import load_image

BACKBONE = "efficientnet_lite2"
IMAGES = {"train": 400, "val": 300}
SIDES = (224, 320)
SIDED = tuple(f"side_{side}" for side in SIDES)
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the regularisation
TIMED = 16  # images
DRAWS = 2000
Look = Callable[["Seen"], Tensor]
"""From an image and its boxes to features (R, F)."""


def run(device: str, rounds: int, small: bool, folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Compare all ways."""
    if small:
        backbone: Backbone = EfficientNetLite("efficientnet_lite0", Network("efficientnet_lite0"), 64, PIXELS)
        data = data or _drawn(folder)
    elif data is None:
        raise SystemExit("looks: give a folder with images and phrases.jsonl by --data")
    else:
        backbone = load_backbone(BACKBONE)
    backbone.to(device)
    boxes, types = _read(data, {"train": 8, "val": 8} if small else IMAGES)
    ways = _ways(backbone)
    looked: dict[str, dict[str, list[Tensor]]] = {name: {split: [] for split in boxes} for name in ways}
    for split, own in boxes.items():
        for file, rows in own.items():
            seen = Seen(backbone, load_image(data / "images" / file), rows)
            for name, look in ways.items():
                looked[name][split].append(look(seen).cpu())
    probes = {name: Probe(features, types) for name, features in looked.items()}
    accuracy = {name: probe.report() for name, probe in probes.items()}
    for name, probe in probes.items():
        accuracy[name]["minus_map"] = probe.minus(probes["map"])
    return {
        "data": data.name,
        "backbone": backbone.name,
        "side": backbone.side,
        "images": {split: len(own) for split, own in boxes.items()},
        "regions": {split: sum(map(len, own.values())) for split, own in boxes.items()},
        "largest_type": _share(types["val"]),
        "accuracy": accuracy,
        "seconds": _seconds(backbone, ways, boxes["val"], data, rounds, device),
    }


class Seen:
    """An image with boxes (R, 4) in fractions, and its maps, each made once."""

    def __init__(self, backbone: Backbone, image: Image.Image, boxes: Tensor) -> None:
        self.backbone, self.image, self.boxes = backbone, image, boxes
        self._maps: dict[tuple[int, int], Tensor] = {}

    def map(self, width: int, height: int) -> Tensor:
        """Return the map of the image scaled to a size."""
        if (width, height) not in self._maps:
            pixels = np.asarray(self.image.resize((width, height), Image.Resampling(self.backbone.pixels.resample)))
            self._maps[width, height] = self.backbone.feature_map(pixels[None])
        return self._maps[width, height]


def _ways(backbone: Backbone) -> dict[str, Look]:
    side = backbone.side

    def crops(seen: Seen) -> Tensor:
        cut = [seen.image.crop(_corners(box, seen.image.size)) for box in seen.boxes.tolist()]
        return backbone.feature_map(np.stack([backbone.prepare(part) for part in cut])).mean((2, 3))

    def at(other: int) -> Look:
        return lambda seen: pool(seen.map(other, other), [seen.boxes])[0]

    def last_layer(seen: Seen) -> Tensor:
        return pool(seen.map(side, side)[:, :HEAD], [seen.boxes])[0]

    def aspect_kept(seen: Seen) -> Tensor:
        scale = side / (seen.image.width * seen.image.height) ** 0.5
        return pool(seen.map(round(seen.image.width * scale), round(seen.image.height * scale)), [seen.boxes])[0]

    ways = {"crops": crops, "map": at(side), "last_layer": last_layer, "aspect_kept": aspect_kept}
    return {**ways, **dict(zip(SIDED, map(at, SIDES), strict=True))}


def _corners(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box touches."""
    (width, height), (left, top, right, bottom) = size, box
    left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
    return left, top, max(left + 1, int(np.ceil(right * width))), max(top + 1, int(np.ceil(bottom * height)))


def _read(data: Path, images: dict[str, int]) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[np.ndarray]]]:
    """Read boxes (R, 4) in fractions by image, and types (R,) as numbers in the same order, of each split."""
    rows: dict[str, dict[str, dict[Any, tuple[list[float], str]]]] = {split: {} for split in images}
    with (data / "phrases.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["split"] in rows and len(row["types"]) == len(row["boxes"]) == 1:
                own = rows[row["split"]].setdefault(row["file_name"], {})
                own.setdefault(row["entity"], (row["boxes"][0], row["types"][0]))
    names = sorted({kind for split in rows.values() for own in split.values() for _, kind in own.values()})
    boxes: dict[str, dict[str, Tensor]] = {}
    types: dict[str, list[np.ndarray]] = {}
    for split, count in images.items():
        files = np.random.default_rng(0).permutation(sorted(rows[split]))[:count].tolist()
        boxes[split], types[split] = {}, []
        for file in files:
            entities = rows[split][file].values()
            size = torch.tensor([*load_image(data / "images" / file).size] * 2)
            boxes[split][file] = (torch.tensor([box for box, _ in entities]) / size).clamp(0, 1)
            types[split].append(np.array([names.index(kind) for _, kind in entities]))
    return boxes, types


class Probe:
    """The hits of a probe on the regions of each `val` image, for one way to look at them."""

    def __init__(self, looked: dict[str, list[Tensor]], types: dict[str, list[np.ndarray]]) -> None:
        self.width = looked["val"][0].shape[1]
        fit = len(looked["train"]) * 3 // 4
        tried = [self._hits(looked["train"], types["train"], fit, strength) for strength in STRENGTHS]
        self.strength = STRENGTHS[int(np.argmax([np.concatenate(hits).mean() for hits in tried]))]
        together, labels = looked["train"] + looked["val"], types["train"] + types["val"]
        self.hits = self._hits(together, labels, len(looked["train"]), self.strength)

    @staticmethod
    def _hits(looked: list[Tensor], types: list[np.ndarray], fit: int, strength: float) -> list[np.ndarray]:
        """Fit on the first images, and return whether each region of each of the others is told rightly."""
        given, labels = torch.cat(looked[:fit]), torch.from_numpy(np.concatenate(types[:fit]))
        mean, spread = given.mean(0), given.std(0).clamp(min=1e-6)
        given = (given - mean) / spread
        classes = int(max(map(np.max, types))) + 1
        weights = torch.zeros(given.shape[1], classes, requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimiser = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(given @ weights + bias, labels)
            value = value + strength / 2 * weights.square().sum()
            value.backward()
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            pairs = zip(looked[fit:], types[fit:], strict=True)
            return [(((x - mean) / spread) @ weights + bias).argmax(1).numpy() == y for x, y in pairs]

    def report(self) -> dict[str, Any]:
        """Return the share of regions told rightly, with its interval."""
        return {
            "width": self.width,
            "strength": self.strength,
            "accuracy": round(float(np.concatenate(self.hits).mean()), 4),
            "interval": _interval(self.hits),
        }

    def minus(self, other: "Probe") -> list[float]:
        """Return the interval of the difference to another way."""
        return _interval([own.astype(float) - its for own, its in zip(self.hits, other.hits, strict=True)])


def _interval(by_image: Sequence[np.ndarray]) -> list[float]:
    images = np.repeat(np.arange(len(by_image)), list(map(len, by_image)))
    return [round(end, 4) for end in mean_interval(np.concatenate(by_image), images.tolist(), DRAWS)]


def _share(types: list[np.ndarray]) -> float:
    return round(float(np.bincount(np.concatenate(types)).max() / sum(map(len, types))), 4)


def _seconds(
    backbone: Backbone, ways: dict[str, Look], boxes: dict[str, Tensor], data: Path, rounds: int, device: str
) -> dict[str, dict[str, Any]]:
    """Time the ways on decoded images, one by one."""
    timed = [(load_image(data / "images" / file), rows) for file, rows in list(boxes.items())[:TIMED]]

    def one_by_one(look: Look) -> Callable[[], object]:
        return lambda: [look(Seen(backbone, image, rows)) for image, rows in timed]

    seconds = interleaved({name: one_by_one(ways[name]) for name in ("crops", "map", *SIDED)}, rounds, device)
    return speeds(seconds, "map", "images_per_second", len(timed), 1)


def _drawn(folder: Path) -> Path:
    """Draw images of noise with boxes of two types."""
    generator, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for number in range(16):
        pixels = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for entity, kind in enumerate(("people", "scene")):
            row = {"split": "train" if number % 2 else "val", "file_name": f"{number}.png", "entity": entity}
            rows.append({**row, "types": [kind], "boxes": [[8 * entity, 4, 40, 44]]})
    (folder / "phrases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
