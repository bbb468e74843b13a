"""`dimvl index` and `dimvl search`, in this process."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dimvl.cli.searching
import dimvl.search.indexing
import dimvl.search.writer
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.extract import extract
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.search.approximate import LISTS
from dimvl.search.format import MANIFEST, read_manifest
from dimvl.search.index import ImageIndex
from dimvl.search.queries import image_query
from dimvl.tasks.retrieval.prediction import embed_all_texts, scales
from tests.cli.calls import Result, Run, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run

IMAGES = tuple(f"photo {number}" for number in range(1, 8))
TEXTS = ("a small red circle", "two blue stars", "the star is above a square")


@dataclass(frozen=True)
class Places:
    """An aligned model, also without its detector; another one; one that does not align; images, stores, an index."""

    model: Path
    bare: Path
    other: Path
    unaligned: Path
    images: Path
    store: Path
    fewer: Path
    index: Path

    def command(self, run: Run, name: str, *arguments: object) -> Result:
        return run(name, *arguments, "--device", "cpu")


def write_store(path: Path, images: Path, detector: Path, ids: Iterator[str] | tuple[str, ...]) -> Path:
    opened = load_detector(detector)
    with RegionStoreWriter(path, opened.extractor) as writer:
        extract([(name, images / f"{name}.png") for name in ids], opened, writer)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    place = tmp_path_factory.mktemp("search")
    detector = make_detector()
    detector.save(place / "detector")
    (place / "images").mkdir()
    for number, name in enumerate(IMAGES):
        make_image(number).save(place / "images" / f"{name}.png")
    for name, changes in {
        "model": {"aligns": True, "shared_prefix": True},
        "unaligned": {"aligns": False},
        "other": {"aligns": True, "matches": False, "answers": ()},
    }.items():
        made = make_trained(all_abilities(detector.extractor, captions=False, **changes), seed=len(name))
        write_run(place / "runs" / name, made, description="photographs")
        export(place / "runs" / name, place / name, place / "detector")
    export(place / "runs" / "model", place / "bare", "none")
    stores = {
        name: write_store(place / name, place / "images", place / "detector", ids)
        for name, ids in (("store", IMAGES), ("fewer", IMAGES[:4]))
    }
    predictor = Predictor.from_pretrained(place / "bare", "cpu")
    dimvl.search.indexing.index_store(predictor.trained, RegionStore(stores["store"]), place / "index")
    names = ("model", "bare", "other", "unaligned", "images")
    return Places(**{name: place / name for name in names}, **stores, index=place / "index")


@pytest.fixture(scope="module")
def predictor(places: Places) -> Predictor:
    return Predictor.from_pretrained(places.model, "cpu")


@pytest.fixture(scope="module")
def embedded(places: Places, predictor: Predictor) -> Tensor:
    """Embeddings of the images, one by one."""
    index = ImageIndex(places.index)
    files = [places.images / f"{name}.png" for name in IMAGES]
    return torch.cat([image_query(predictor, index, str(file)).embedding for file in files])


@pytest.fixture
def search(run: Run, places: Places) -> Run:
    return partial(places.command, run, "search", places.index, "--model", places.bare)


def records(result: Result) -> list[dict]:
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != MANIFEST}


# --- index


def test_an_index_is_continued_with_the_images_that_it_lacks_and_keeps_the_others(
    places: Places, run: Run, tmp_path: Path
) -> None:
    index = partial(places.command, run, "index", "--model", places.bare)
    assert index(places.fewer, tmp_path / "index").out == f"4 images embedded, 0 kept: {tmp_path / 'index'}\n"
    before = ImageIndex(tmp_path / "index").parts[0].embeddings.clone()
    assert index(places.store, tmp_path / "index").out == f"3 images embedded, 4 kept: {tmp_path / 'index'}\n"
    after = ImageIndex(tmp_path / "index")
    assert [after.image_id(place) for place in range(7)] == [*IMAGES]
    assert torch.equal(after.parts[0].embeddings[:4], before)
    assert after.manifest.store == str(places.store)
    result = index(places.store, tmp_path / "index")
    assert result.out == f"0 images embedded, 7 kept: {tmp_path / 'index'}\n"
    refused(index(places.fewer, tmp_path / "index"), "has images that region store", "lacks, such as 'photo 5'")
    assert read_manifest(tmp_path / "index").store == str(places.store)


def test_an_interrupted_index_that_is_continued_is_that_of_one_run(
    places: Places, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.search.indexing, "BLOCK", 2)
    monkeypatch.setattr(dimvl.search.writer, "PART_IMAGES", 3)
    index = partial(places.command, run, "index", places.store)
    assert index(tmp_path / "whole", "--model", places.bare).code == 0
    embed, calls = dimvl.search.indexing.embed_images, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:  # the first call is of one image, for the width
            raise KeyboardInterrupt
        return embed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dimvl.search.indexing, "embed_images", interrupted)
    assert index(tmp_path / "cut", "--model", places.bare).code == 130
    assert read_manifest(tmp_path / "cut").num_images == 4
    assert index(tmp_path / "cut", "--model", places.bare).out.startswith("3 images embedded, 4 kept")
    index(tmp_path / "cut", "--model", places.bare)  # removes the part that was written again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_cannot_be_indexed_is_one_sentence(places: Places, run: Run, tmp_path: Path) -> None:
    index = partial(places.command, run, "index")
    out = tmp_path / "index"
    refused(index(places.store, out, "--model", places.unaligned), "was not trained to align images and texts")
    assert not out.exists()
    with RegionStoreWriter(tmp_path / "empty", RegionStore(places.store).extractor):
        pass
    refused(index(tmp_path / "empty", out, "--model", places.bare), "has no images; give another")
    refused(index(places.store, places.index, "--model", places.other), "was made by a different model", "give the")
    make_detector(seed=5).save(tmp_path / "detector")
    write_store(tmp_path / "foreign", places.images, tmp_path / "detector", IMAGES[:1])
    refused(index(tmp_path / "foreign", out, "--model", places.bare), "the model was trained with tiny")
    with dimvl.search.writer.locked(out):
        refused(index(places.store, out, "--model", places.bare), "another process is writing the index")


# --- search


def test_images_are_found_by_the_cosine_with_a_text(
    places: Places, search: Run, predictor: Predictor, embedded: Tensor
) -> None:
    cosines = embed_all_texts(predictor.trained, TEXTS).pooled @ embedded.T
    found = records(search(*TEXTS, "--json"))
    assert [(one["query"], one["rank"]) for one in found] == [(text, rank) for text in TEXTS for rank in range(1, 8)]
    for text, row in zip(TEXTS, cosines, strict=True):
        own = {one["image_id"]: one["score"] for one in found if one["query"] == text}
        assert [*own] == [IMAGES[place] for place in row.argsort(descending=True).tolist()]
        assert own == pytest.approx(dict(zip(IMAGES, row.tolist(), strict=True)), abs=1e-4)  # float16 in the store
    best = records(search(TEXTS[0], "--json", "--top", 2))
    assert [one["image_id"] for one in best] == [one["image_id"] for one in found[:2]]
    lines = search(TEXTS[0], "--top", 2).out.splitlines()
    assert lines == [f"  {one['rank']}  {one['score']:.3f}  {one['image_id']}" for one in best]
    assert search(*TEXTS, "--top", 1).out.splitlines()[::2] == [f"{text}:" for text in TEXTS]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_the_best_are_sorted_by_matching_head_and_scaled_cosine(
    places: Places, search: Run, predictor: Predictor
) -> None:
    by_embedding = records(search(*TEXTS, "--json", "--top", 5))
    found = records(search(*TEXTS, "--json", "--rerank", 5))
    scale, moved = float(scales(predictor.trained)[0]), 0
    for place, text in enumerate(TEXTS):
        own, before = found[5 * place : 5 * place + 5], by_embedding[5 * place : 5 * place + 5]
        names = [[one["image_id"] for one in hits] for hits in (own, before)]
        assert sorted(names[0]) == sorted(names[1])
        moved += names[0] != names[1]
        for one in own:
            expected = predictor.match(places.images / f"{one['image_id']}.png", text)
            assert one["probability"] == pytest.approx(expected, abs=1e-3)
        sums = [logit(one["probability"]) + scale * one["score"] for one in own]
        assert sums == sorted(sums, reverse=True)
    assert moved, "otherwise the matching head makes no difference here"
    own = found[:5]
    alone = search(TEXTS[0], "--rerank", 5, "--top", 4).out.splitlines()
    line = "  {rank}  {score:.3f}  {probability:.3f}  {image_id}"
    assert alone == [line.format(**one) for one in own[:4]]


def test_texts_together_are_one_query_to_which_each_adds(places: Places, search: Run, predictor: Predictor) -> None:
    alone = records(search(*TEXTS, "--json", "--rerank", 7))
    found = records(search(*TEXTS, "--together", "--json", "--rerank", 7))
    assert [one["query"] for one in found] == [" ".join(TEXTS)] * 7
    scale, sums = float(scales(predictor.trained)[0]), []
    for one in found:
        parts = [part for part in alone if part["image_id"] == one["image_id"]]
        assert one["score"] == pytest.approx(sum(part["score"] for part in parts) / len(TEXTS), abs=1e-4)
        assert one["probability"] == pytest.approx(math.prod(part["probability"] for part in parts), abs=1e-4)
        sums.append(sum(logit(part["probability"]) + scale * part["score"] for part in parts))
    assert sums == pytest.approx(sorted(sums, reverse=True), abs=1e-3)
    by_embedding = [one["score"] for one in records(search(*TEXTS, "--together", "--json"))]
    assert by_embedding == sorted(by_embedding, reverse=True) and len(by_embedding) == 7


def test_images_like_one_of_the_index_or_of_a_file_are_found(places: Places, run: Run, embedded: Tensor) -> None:
    search = partial(places.command, run, "search", places.index, "--model", places.model, "--json")
    cosines = embedded @ embedded[2]
    expected = [IMAGES[place] for place in cosines.argsort(descending=True).tolist()]
    assert expected[0] == IMAGES[2]
    assert [one["image_id"] for one in records(search("--image", IMAGES[2]))] == expected[1:], "without itself"
    file = places.images / f"{IMAGES[2]}.png"
    assert [one["image_id"] for one in records(search("--image", file, "--top", 3))] == expected[:3]


def test_an_approximate_search_of_all_lists_finds_what_the_exact_one_finds(places: Places, run: Run) -> None:
    """Here 64 lists are all; they are made by the first search."""
    pytest.importorskip("faiss", reason="approximate search needs the extra faiss")
    search = partial(places.command, run, "search", places.index, "--model", places.model, "--json")
    texts = (*TEXTS, "--rerank", 5)
    for number, given in enumerate((TEXTS, texts, (*texts, "--together"), ("--image", IMAGES[2], "--top", 3))):
        found = search(*given, "--approximate")
        assert records(found) == records(search(*given))
        assert ("7 of 7 images" in found.err) == (number == 0)
    (places.index / LISTS).unlink()


def test_an_exact_search_of_many_images_mentions_the_approximate_one(
    search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search(TEXTS[0]).err == ""
    monkeypatch.setattr(dimvl.cli.searching, "MANY", 6)
    result = search(TEXTS[0])
    assert result.err == "all 7 images are compared; for many texts, --approximate is faster\n"
    assert len(result.out.splitlines()) == 7


def test_texts_of_a_file_are_found_for_an_image(
    places: Places, search: Run, predictor: Predictor, embedded: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join([TEXTS[1], "", TEXTS[0], TEXTS[2], TEXTS[0]]))
    texts = [TEXTS[1], TEXTS[0], TEXTS[2]]
    given = ("--image", IMAGES[0], "--texts", tmp_path / "texts.txt", "--json")
    cosines = embed_all_texts(predictor.trained, texts).pooled @ embedded[0]
    found = records(search(*given))
    assert [one["text"] for one in found] == [texts[place] for place in cosines.argsort(descending=True).tolist()]
    sorted_again = records(search(*given, "--rerank", 3))
    expected = {text: predictor.match(places.images / f"{IMAGES[0]}.png", text) for text in texts}
    assert {one["text"]: one["probability"] for one in sorted_again} == pytest.approx(expected, abs=1e-3)
    scale = float(scales(predictor.trained)[0])
    sums = [logit(one["probability"]) + scale * one["score"] for one in sorted_again]
    assert sums == sorted(sums, reverse=True)
    captions = [{"image": name, "caption": text} for name, text in zip(IMAGES, texts, strict=False)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in captions))
    assert records(search("--image", IMAGES[0], "--texts", tmp_path / "captions.jsonl", "--json")) == found


def test_a_page_shows_the_images_with_their_regions_and_names_those_that_are_not_there(
    places: Places, search: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(places.images, tmp_path / "images")
    page = tmp_path / "page.html"
    given = ("a <b>star</b>", TEXTS[0], "--html", page, "--images", folder)
    assert search(*given, "--top", 3).code == 0
    written = page.read_text()
    assert written.count('src="data:image/png;base64,') == 6 and "a &lt;b&gt;star&lt;/b&gt;" in written
    assert not re.search(r'(?:src|href)="(?!data:)', written)
    for name in IMAGES[:5]:
        (folder / f"{name}.png").write_bytes(b"no image")
    (folder / f"{IMAGES[5]}.png").unlink()
    result = search(*given, "--top", 7)
    assert result.code == 1 and len(result.out.splitlines()) == 16
    assert result.err.splitlines()[-1].startswith(f"{folder} lacks 6 images: photo ")
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": IMAGES[5], "file_name": f"{IMAGES[6]}.png"}]}))
    assert "lacks 6 images" in search(*given, "--top", 7, "--coco", tmp_path / "coco.json").err


def test_what_cannot_be_searched_is_one_sentence(
    places: Places, run: Run, search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(search("xylophone zq", "zebra"), "the model knows no word of", "use other words")
    refused(search("a star", "--top", 8), "--top is 8 but there are 7 images to find; give at most 7")
    refused(search("a star", "--rerank", 9), "--rerank is 9 but there are 7 images")
    refused(search("a star", "--rerank", 2, "--top", 3), "--top 3 is more than --rerank 2")
    refused(search(), "there is nothing to search by; give texts, or --image")
    refused(search("a star", "--image", IMAGES[0]), "'a star' and --image are both given to search by; omit one")
    refused(search("a star", " "), "text 2 of 2 is empty")
    refused(search("--image", IMAGES[0], "--together"), "--together joins several texts into one query; give texts")
    refused(search("--texts", places.index / MANIFEST), "give --image")
    refused(search("--image", IMAGES[0], "--rerank", 3), "compares images with texts")
    refused(search("--image", "photo 8"), "is neither a file nor an image of", "an id such as 'photo 1'")
    refused(search("--image", places.images / f"{IMAGES[0]}.png"), "takes no image files; give the id of an image")
    refused(search(places.images / f"{IMAGES[0]}.png"), "not a text; if it is an image, give it as --image")
    monkeypatch.chdir(tmp_path)
    (tmp_path / IMAGES[0]).touch()
    refused(search("--image", IMAGES[0]), "photo 1 is a file and an image of", "write ./photo 1 for the file")
    refused(search("a star", "--html", tmp_path / "page.html"), "give --images")
    refused(search("a star", "--images", places.images), "give it too, or omit them")
    texts = ("--image", IMAGES[0], "--texts", places.index / MANIFEST)
    refused(search(*texts, "--approximate"), "--approximate finds images and --texts finds texts", "omit one")
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused(search("a star", "--approximate"), "approximate search needs faiss-cpu; pip install 'dimvl[faiss]'")
    other = partial(places.command, run, "search", places.index, "a star", "--model")
    refused(other(places.unaligned), "cannot search: it was not trained to align images and texts")
    refused(other(places.other), "was made by a different model", "give the model that made it")
    refused(places.command(run, "search", places.store, "a", "--model", places.bare), "is not an index of images")


def test_a_model_without_a_matching_head_does_not_sort_again(places: Places, run: Run, tmp_path: Path) -> None:
    assert places.command(run, "index", places.store, tmp_path / "index", "--model", places.other).code == 0
    search = partial(places.command, run, "search", tmp_path / "index", "a star", "--model", places.other)
    assert search().code == 0
    refused(search("--rerank", 3), "cannot match; give one trained to match")


def test_a_store_that_has_moved_or_changed_is_named_where_it_is_needed(
    places: Places, run: Run, tmp_path: Path
) -> None:
    store = shutil.copytree(places.fewer, tmp_path / "store")
    index = partial(places.command, run, "index", "--model", places.bare)
    search = partial(places.command, run, "search", tmp_path / "index", "a star", "--model", places.bare)
    assert index(store, tmp_path / "index").code == 0
    store.rename(tmp_path / "moved")
    assert search().code == 0
    refused(search("--rerank", 2), "does not exist; run `dimvl index` with its new place")
    assert index(tmp_path / "moved", tmp_path / "index").out.startswith("0 images embedded, 4 kept")
    assert search("--rerank", 2).code == 0
    shutil.rmtree(tmp_path / "moved")
    (tmp_path / "images").mkdir()
    for name in IMAGES[:4]:
        make_image(99).save(tmp_path / "images" / f"{name}.png")
    write_store(tmp_path / "moved", tmp_path / "images", places.model / "detector", IMAGES[:4])
    refused(search("--rerank", 2), "differ from those that were embedded", "rebuild the index")
    refused(index(tmp_path / "moved", tmp_path / "index"), "has changed since it was embedded: 4 images with")
    assert np.unique(RegionStore(tmp_path / "moved").checksums(np.arange(4))).size == 1
