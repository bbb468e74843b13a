"""An index of drawn embeddings: exact search, and its files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dimvl.search.writer
from dimvl.errors import UserError
from dimvl.search import index as index_module
from dimvl.search.format import MANIFEST, read_manifest
from dimvl.search.index import ImageIndex
from dimvl.search.writer import IndexWriter
from tests.search.made import draw, make_index, make_manifest


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimvl.search.writer, "PART_IMAGES", 20)


def compared_in_full(rows: Tensor, query: Tensor, count: int) -> tuple[list[int], list[float]]:
    scores = (rows.double() @ query.double()).float()
    best = torch.sort(scores, descending=True, stable=True)
    return best.indices[:count].tolist(), best.values[:count].tolist()


@pytest.mark.parametrize("integers", [True, False], ids=["int8", "float32"])
@pytest.mark.parametrize("spread", [10.0, 0.01, 1e-5])
def test_search_finds_what_comparing_all_embeddings_finds(
    tmp_path: Path, spread: float, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where embeddings differ by less than their codes can tell, and where some are equal."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: integers)
    rows = draw(150, spread=spread)
    rows[[3, 90, 149]] = rows[[40, 40, 40]]
    index = ImageIndex(make_index(tmp_path / "index", rows))
    queries = torch.cat([draw(20, seed=1, spread=spread), rows[40:41]])
    for count in (1, 5, 33, 150):
        for query, found in zip(queries, index.search(queries, count), strict=True):
            places, scores = compared_in_full(rows, query, count)
            assert (found.positions.tolist(), found.scores.tolist()) == (places, scores)


def test_only_images_whose_codes_allow_it_are_compared_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, compared = ImageIndex(make_index(tmp_path / "index", draw(2000, width=64))), []
    best = ImageIndex._best

    def counted(self: ImageIndex, query: Tensor, positions: Tensor, count: int) -> index_module.Found:
        compared.append(len(positions))
        return best(self, query, positions, count)

    monkeypatch.setattr(ImageIndex, "_best", counted)
    index.search(draw(20, seed=1, width=64), 5)
    assert 5 <= max(compared) < 200


def test_an_index_knows_its_images_by_id_and_by_position(tmp_path: Path) -> None:
    rows, ids = draw(50), [f"{'é' * (number % 3)}{number}/a b" for number in range(49)] + ["\udcff"]
    index = ImageIndex(make_index(tmp_path / "index", rows, ids))
    assert len(index) == 50 and [index.image_id(place) for place in range(50)] == ids
    assert [index.find(name) for name in ids] == [*range(50)]
    assert index.find("50/a b") is None and index.find("1/a b/a b") is None
    assert torch.equal(torch.stack([index.embedding(place) for place in range(50)]), rows)
    assert [index.checksum(place) for place in range(50)] == [*range(50)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_index_that_was_continued_is_that_of_one_run(tmp_path: Path) -> None:
    rows = draw(70)
    names = [str(number) for number in range(70)]
    whole = make_index(tmp_path / "whole", rows)
    assert [part.num_images for part in read_manifest(whole).parts] == [20, 20, 20, 10]
    continued = tmp_path / "continued"
    for start, end in ((0, 0), (0, 25), (25, 25), (25, 60), (60, 70)):
        with IndexWriter(continued, make_manifest()) as writer:
            assert writer.manifest.num_images == start
            writer.add(names[start:end], torch.arange(start, end), rows[start:end])
    with IndexWriter(continued, make_manifest()):
        pass  # removes parts that were written again
    assert contents(whole) == contents(continued)


def test_an_interrupted_writer_keeps_what_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexWriter(tmp_path / "index", make_manifest()) as writer:
        writer.add([*"abc"], torch.arange(3), draw(3))
        raise KeyboardInterrupt
    assert ImageIndex(tmp_path / "index").find("c") == 2


def test_what_a_killed_writer_left_is_removed_and_the_committed_part_stays(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", draw(25))
    (index / "part-00001-20.safetensors").write_bytes(b"not committed")
    (index / ".index.json.0123abcd.part").write_bytes(b"half")
    assert len(ImageIndex(index)) == 25
    with IndexWriter(index, make_manifest()):
        pass
    assert sorted(contents(index)) == [MANIFEST, "part-00000-20.safetensors", "part-00001-5.safetensors"]


def test_a_damaged_file_of_an_index_is_one_sentence(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", draw(45))
    for file in sorted(index.iterdir()):
        whole = file.read_bytes()
        for place in (9, len(whole) // 2, len(whole) - 3):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            for opened in (ImageIndex, lambda path: IndexWriter(path, make_manifest())):
                with pytest.raises(UserError, match=r"damaged.*; rebuild the index"):
                    opened(index)
        file.write_bytes(whole[:-1])
        with pytest.raises(UserError, match="damaged"):
            ImageIndex(index)
        file.unlink()
        with pytest.raises(UserError, match=r"is missing or damaged|is not an index"):
            ImageIndex(index)
        file.write_bytes(whole)
    assert len(ImageIndex(index)) == 45


def test_folders_that_are_no_index_or_another_one_are_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", draw(5))
    with pytest.raises(UserError, match=r"was made by a different model \(exports/made\).*; give the model that"):
        IndexWriter(index, make_manifest(model="b" * 64))
    with IndexWriter(index, make_manifest()), pytest.raises(UserError, match="another process is writing"):
        IndexWriter(index, make_manifest())
    with IndexWriter(tmp_path / "empty", make_manifest()):
        pass
    with pytest.raises(UserError, match="has no images; give a region store"):
        ImageIndex(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="neither empty nor an index"):
        IndexWriter(tmp_path / "other", make_manifest())
    with pytest.raises(UserError, match="make one with `dimvl index`"):
        ImageIndex(tmp_path / "other")


@pytest.mark.parametrize("count", [0, 6])
def test_more_images_than_there_are_cannot_be_found(tmp_path: Path, count: int) -> None:
    index = ImageIndex(make_index(tmp_path / "index", draw(5)))
    with pytest.raises(UserError, match=f"{count} images are asked for but .* has 5; ask for 1 to 5"):
        index.search(draw(1), count)
