"""Approximate search: lists of similar images, made by faiss and kept beside an index."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dimvl.search.writer
from dimvl.errors import UserError
from dimvl.search import approximate
from dimvl.search.approximate import LISTS, ApproximateIndex
from dimvl.search.format import read_manifest
from dimvl.search.index import Found, ImageIndex
from dimvl.search.writer import IndexWriter
from tests.search.made import WIDTH, draw, make_index, make_manifest


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of 150 images in parts of 20, of which some are equal."""
    pytest.importorskip("faiss", reason="approximate search needs the extra faiss")
    monkeypatch.setattr(dimvl.search.writer, "PART_IMAGES", 20)
    rows = draw(150)
    rows[[3, 90, 149]] = rows[[40, 40, 40]]
    return make_index(tmp_path / "index", rows)


QUERIES = torch.cat([draw(20, seed=1), draw(150)[40:41]])


def places(found: list[Found]) -> list[list[int]]:
    return [each.positions.tolist() for each in found]


@pytest.mark.parametrize("spread", [10.0, 0.01, 1e-5])
def test_with_all_lists_an_approximate_search_is_exact(
    made: Path, tmp_path: Path, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In positions, scores and ties, also where more images than faiss is asked for are equally good."""
    monkeypatch.setattr(approximate, "SPARE", 0)
    rows = draw(150, spread=spread)
    rows[[3, 90, 149]] = rows[[40, 40, 40]]
    index = make_index(tmp_path / "spread", rows)
    queries = torch.cat([draw(20, seed=1, spread=spread), rows[40:41]])
    exact, own = ImageIndex(index), ApproximateIndex(index, probes=1000)
    for count in (1, 5, 33, 150):
        for one, other in zip(exact.search(queries, count), own.search(queries, count), strict=True):
            assert (one.positions.tolist(), one.scores.tolist()) == (other.positions.tolist(), other.scores.tolist())


def test_with_few_lists_scores_are_exact_and_there_are_as_many_results_as_are_wanted(made: Path) -> None:
    exact, own = ImageIndex(made), ApproximateIndex(made, probes=2)
    missed = 0
    for count in (1, 5, 150):
        for one, other in zip(exact.search(QUERIES, 150), own.search(QUERIES, count), strict=True):
            scores = dict(zip(one.positions.tolist(), one.scores.tolist(), strict=True))
            found = other.positions.tolist()
            assert len({*found}) == len(found) == count
            assert other.scores.tolist() == [scores[place] for place in found]
            assert found == [place for place in scores if place in found], "in the order of an exact search"
            missed += found != one.positions.tolist()[:count]
    assert missed, "otherwise two lists are all"


def test_lists_are_kept_until_images_are_added(made: Path) -> None:
    assert ApproximateIndex(made).lists is None
    before = ApproximateIndex(made)
    before.search(QUERIES, 3)
    kept, data = ApproximateIndex(made), (made / LISTS).read_bytes()
    assert kept.lists is not None and before.lists is not None
    assert all(torch.equal(one, other) for one, other in zip(kept.lists, before.lists, strict=True))
    with IndexWriter(made, make_manifest()) as writer:
        pass
    assert (made / LISTS).read_bytes() == data and ApproximateIndex(made).lists is not None
    with IndexWriter(made, make_manifest()) as writer:
        writer.add(["new"], torch.zeros(1).long(), QUERIES[:1])
    own = ApproximateIndex(made)
    assert own.lists is None
    assert places(own.search(QUERIES[:1], 1)) == [[150]]
    assert ApproximateIndex(made).lists is not None


def test_lists_are_the_same_each_time_they_are_made(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "SAMPLE", 2)  # so that a sample is drawn
    ApproximateIndex(made).make_lists()
    before = (made / LISTS).read_bytes()
    (made / LISTS).unlink()
    done: list[tuple[int, int]] = []
    ApproximateIndex(made).make_lists(lambda *each: done.append(each))
    assert (made / LISTS).read_bytes() == before
    assert done == [(min(end, 150), 150) for end in range(0, 161, 20)]


def test_damaged_or_foreign_lists_are_made_again(made: Path, tmp_path: Path) -> None:
    other = make_index(tmp_path / "other", draw(150, seed=7))
    ApproximateIndex(other).make_lists()
    ApproximateIndex(made).make_lists()
    whole = (made / LISTS).read_bytes()
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(0, len(whole), 97)]
    for data in (*damaged, whole[:-1], b"", b"{}", (other / LISTS).read_bytes()):
        (made / LISTS).write_bytes(data)
        assert ApproximateIndex(made).lists is None
    ApproximateIndex(made).search(QUERIES, 1)
    assert (made / LISTS).read_bytes() == whole


def test_lists_with_a_corrected_checksum_are_used_only_if_faiss_can_hold_them(made: Path) -> None:
    """Faiss writes to the list that a number names, without checking that there is one."""
    ApproximateIndex(made).make_lists()
    arrays, manifest = load_file(made / LISTS), read_manifest(made)
    centres, numbers = arrays["centres"], arrays["numbers"]
    for changed in (
        {"numbers": numbers + len(centres)},
        {"numbers": numbers - len(centres)},
        {"numbers": numbers.int()},
        {"numbers": numbers[1:]},
        {"centres": centres[:, 1:].contiguous()},
        {"centres": centres[:0]},
        {"centres": centres.double()},
        {"other": centres.clone()},
    ):
        own = {"centres": centres, "numbers": numbers, **changed}
        save_file({**own, "checksum": approximate._checksum(manifest, own)}, made / LISTS)
        assert ApproximateIndex(made).lists is None, changed
    save_file(arrays, made / LISTS)
    assert ApproximateIndex(made).lists is not None and centres.shape[1] == WIDTH


def test_without_faiss_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = make_index(tmp_path / "index", draw(5))
    with pytest.raises(UserError, match=r"needs faiss-cpu; pip install 'dimvl\[faiss\]'"):
        ApproximateIndex(index)
    assert len(ImageIndex(index)) == 5
