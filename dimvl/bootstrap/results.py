"""Blocks joined, in one pass: captions that are kept and dropped, a report, and a page of examples.

    OUT/captions.jsonl   kept captions, to pretrain on
    OUT/dropped.jsonl    the others
    OUT/report.json      counts, histograms of the scores, models, and what is known of the noise
    OUT/report.html      the same, with images

Another threshold needs the same command only: the scores are in the blocks.
"""

import heapq
import json
import logging
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.bootstrap.texts import WebTexts
from dimvl.bootstrap.threshold import Threshold
from dimvl.bootstrap.writing import BlockWriter
from dimvl.data.matching import coco_number
from dimvl.data.noise import CLEAN
from dimvl.drawing import stored_image_uri
from dimvl.files import atomic_path, reading, write_json
from dimvl.regions.listing import id_of_name
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import encode_id, hash_of_id
from dimvl.report.page import write_page
from dimvl.showing import short

logger = logging.getLogger(__name__)
KEPT, DROPPED, REPORT, PAGE = "captions.jsonl", "dropped.jsonl", "report.json", "report.html"
BINS = 20
"""Of the histograms of scores from 0 to 1."""
EXAMPLES = 8
"""Images on the page for each outcome."""
SHOWN = 6
"""Texts of an image on the page."""
REGIONS = 5
"""Regions that are drawn, the best."""


@dataclass
class Results:
    """What was kept.

    Attributes:
        texts: origin -> number of texts.
        kept: origin -> number of those that were kept.
        report: the content of `report.json`.

    """

    texts: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Count:
    """Counts of one pass over the lines."""

    results: Results = field(default_factory=Results)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    noise: Counter[tuple[str, bool]] = field(default_factory=Counter)  # kind, whether kept
    cut: int = 0

    def add(self, line: Mapping[str, Any], kept: bool) -> None:
        origin = line["origin"]
        self.results.texts[origin] += 1
        self.results.kept[origin] += kept
        self.cut += "cut" in line
        bins = self.histograms.setdefault(origin, [0] * BINS)
        bins[min(int(line["score"] * BINS), BINS - 1)] += 1
        if origin != "synthetic" and isinstance(line.get("noise"), str):
            self.noise[line["noise"], kept] += 1


class _Examples:
    """A few images for each outcome, drawn by their ids: (a web text was kept, a synthetic one was), None for none."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool | None, bool | None], list[tuple[int, int, str, Any]]] = {}
        self._number = 0

    def add(self, image_id: str, judged: Sequence[tuple[Mapping[str, Any], bool]]) -> None:
        web, synthetic = (
            [kept for line, kept in judged if (line["origin"] == "synthetic") == wanted] for wanted in (False, True)
        )
        outcome = (any(web) if web else None, any(synthetic) if synthetic else None)
        heap = self._found.setdefault(outcome, [])
        self._number += 1
        shown = [*judged[: SHOWN - 1], *judged[SHOWN - 1 :][-1:]]  # the last one is synthetic, if one is
        heapq.heappush(heap, (-hash_of_id(encode_id(image_id)), self._number, image_id, shown))
        if len(heap) > EXAMPLES:
            heapq.heappop(heap)

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        """Yield a title and images with their texts for each outcome; what differs comes first."""
        for web, synthetic in sorted(self._found, key=lambda outcome: (outcome[0] == outcome[1], str(outcome))):
            named = {"captions of the file": web, "synthetic ones": synthetic}
            said = [
                f"some {name} kept" if kept else f"all {name} dropped"
                for name, kept in named.items()
                if kept is not None
            ]
            heap = sorted(self._found[web, synthetic], reverse=True)
            yield ", ".join(said).capitalize(), [(image_id, judged) for _, _, image_id, judged in heap]


def write_results(
    config: BootstrapConfig,
    writer: BlockWriter,
    store: RegionStore,
    threshold: Threshold,
    lines: Iterable[dict[str, Any]],
    images: int,
    texts: WebTexts,
) -> Results:
    """Write all files; memory does not grow with the lines. A warning counts captions longer than the filter reads.

    Args:
        config: what was done.
        writer: has the models.
        store: the regions.
        threshold: from which score a text is kept.
        lines: what the blocks have.
        images: number of images.
        texts: the captions, which were read to their end.

    Raises:
        UserError: a block is damaged, or a file cannot be written.

    """
    count, examples = _Count(), _Examples()
    with (
        atomic_path(config.output / KEPT) as kept_path,
        atomic_path(config.output / DROPPED) as dropped_path,
        kept_path.open("w", encoding="ascii") as kept,
        dropped_path.open("w", encoding="ascii") as dropped,
    ):
        for image_id, of_image in groupby(lines, key=lambda line: str(line["image"])):
            judged = [(line, line["score"] >= threshold.score) for line in of_image]
            for line, is_kept in judged:
                (kept if is_kept else dropped).write(json.dumps(line) + "\n")
                count.add(line, is_kept)
            examples.add(image_id, judged)
    results, not_written = count.results, {}
    if writer.captioner:
        written = results.texts["synthetic"] - texts.synthetic
        not_written = {"not_written": images * config.sampling.captions - written}
        count.histograms.setdefault("synthetic", [0] * BINS)  # shown even if it wrote none
    limit = writer.filter.trained.processor.text_tokens
    if count.cut:
        logger.warning(
            "%d of %d texts are longer than %d tokens and were truncated", count.cut, results.texts.total(), limit
        )
    results.report = {
        "models": {
            name: {"name": model.folder.name, "fingerprint": model.fingerprint}
            for name, model in (("captioner", writer.captioner), ("filter", writer.filter))
            if model is not None
        },
        "sampling": config.sampling.model_dump() | {"seed": config.seed} if writer.captioner else None,
        "score": config.score,
        "threshold": asdict(threshold),
        "images": images,
        "captions_read": texts.captions,
        "captions_dropped": {"image not in the store": texts.missing},
        "captions_cut": {f"longer than {limit} tokens": count.cut},
        "origins": {
            origin: {
                "texts": results.texts[origin],
                "kept": results.kept[origin],
                **(not_written if origin == "synthetic" else {}),
                "histogram": bins,
            }
            for origin, bins in sorted(count.histograms.items())
        },
        "noise": noise_scores(count.noise),
    }
    write_json(config.output / REPORT, results.report)
    _write_page(config, store, results.report, examples)
    return results


def noise_scores(counts: Mapping[tuple[str, bool], int]) -> dict[str, Any]:
    """Return precision and recall of the filter by kind of noise; empty if the file does not say what its noise is.

    Of each kind: how many of its texts were dropped (recall), and how many of the dropped texts of this kind and of
    clean ones are of this kind (precision). Of all: how many kept texts are clean.

    Args:
        counts: (kind, whether kept) -> texts; kind `none` is clean.

    """
    kinds = sorted({kind for kind, _ in counts} - {CLEAN})
    clean_kept, clean_dropped = counts.get((CLEAN, True), 0), counts.get((CLEAN, False), 0)
    found: dict[str, Any] = {}
    for kind in kinds:
        kept, dropped = counts.get((kind, True), 0), counts.get((kind, False), 0)
        found[kind] = {
            "texts": kept + dropped,
            "recall": dropped / (kept + dropped),
            "precision": dropped / (dropped + clean_dropped) if dropped + clean_dropped else None,
        }
    if found or clean_kept + clean_dropped:
        kept = sum(number for (_, is_kept), number in counts.items() if is_kept)
        found["clean"] = {
            "texts": clean_kept + clean_dropped,
            "kept": clean_kept / (clean_kept + clean_dropped) if clean_kept + clean_dropped else None,
            "share_of_kept": clean_kept / kept if kept else None,
        }
    return found


def _write_page(config: BootstrapConfig, store: RegionStore, report: Mapping[str, Any], examples: _Examples) -> None:
    shown = {image_id for _, of_outcome in examples for image_id, _ in of_outcome}
    files = _files_of(config.images, shown) if config.images else {}
    sections = []
    for title, of_outcome in examples:
        cards = []
        for image_id, judged in of_outcome:
            image = stored_image_uri(files.get(image_id), store, image_id, REGIONS)
            texts = [{**line, "caption": _shown(line["caption"]), "kept": kept} for line, kept in judged]
            cards.append({"id": image_id, "image": image, "texts": texts})
        sections.append((title, cards))
    write_page(
        config.output / PAGE,
        Path(__file__).with_name("page.html.jinja"),
        title="Bootstrapped captions",
        report=report,
        origins=dict(sorted(report["origins"].items(), key=lambda origin: origin[0] == "synthetic")),
        bins=[f"{place / BINS:.2f} to {(place + 1) / BINS:.2f}" for place in range(BINS)],
        sections=sections,
    )


def _files_of(folder: Path, image_ids: Container[str]) -> dict[str, Path]:
    """Return the files of these images, by their names or COCO numbers; of the others in the folder nothing is kept."""
    named, numbered = dict[str, Path](), dict[str, Path]()
    with reading(folder), os.scandir(folder) as entries:
        for entry in entries:
            for found, image_id in ((named, id_of_name(entry.name)), (numbered, coco_number(entry.name))):
                if image_id in image_ids:
                    found[image_id] = min(found.get(image_id, folder / entry.name), folder / entry.name)
    return numbered | named


def _shown(text: str) -> str:
    return text if len(text) <= 300 else short(text)
