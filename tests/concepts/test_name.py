from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.concepts.renaming import name_store, named_extractor
from dimvl.errors import UserError
from dimvl.regions.extract import extract
from dimvl.regions.extractors.composed import ComposedExtractor
from dimvl.regions.naming.folds import Folds
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.concepts.made import EXTRACTOR, NAMED_WORDS, make_captioned, make_namer
from tests.exports import make_detector, make_image


def written(store, namer, out, folds=None, limit=None):
    """Name a store, or its first images only as if killed then."""
    opened = RegionStore(store)
    extractor = named_extractor(opened, namer, out, folds is not None)
    with RegionStoreWriter(out, extractor, feature_dtype=opened.folders[0].manifest.feature_dtype) as writer:

        def show(done, total):
            if done == limit:
                raise KeyboardInterrupt

        return name_store(opened, namer, writer, folds, show)


def contents(store):
    opened = RegionStore(store)
    return [opened.read(position) for position in range(len(opened))]


def equal(one, other):
    return one.image_id == other.image_id and all(
        np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays
    )


def test_a_named_store_is_what_extraction_with_these_concepts_writes(tmp_path):
    (tmp_path / "images").mkdir()
    files = []
    for seed in range(3):
        make_image(seed, 60 + 9 * seed, 50).save(tmp_path / "images" / f"{seed}.png")
        files.append((str(seed), tmp_path / "images" / f"{seed}.png"))
    detector = make_detector()
    namer = make_namer(detector.extractor)
    for name, called in (("plain", None), ("both", namer)):
        found = ComposedExtractor(detector, None, called) if called else detector
        with RegionStoreWriter(tmp_path / name, found.extractor) as writer:
            extract(files, found, writer)
    written(tmp_path / "plain", namer, tmp_path / "named")
    one, other = RegionStore(tmp_path / "named"), RegionStore(tmp_path / "both")
    assert one.extractor == other.extractor and one.extractor.attributes == NAMED_WORDS
    assert all(map(equal, contents(tmp_path / "named"), contents(tmp_path / "both")))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_naming_copies_the_regions_and_gives_classes_to_those_without(tmp_path, dtype):
    store, _ = make_captioned(tmp_path, 5, dtype=dtype)
    assert written(store, make_namer(EXTRACTOR), tmp_path / "named") == (5, 0)
    for before, after in zip(contents(store), contents(tmp_path / "named"), strict=True):
        assert np.array_equal(before.boxes, after.boxes)
        np.testing.assert_allclose(before.features, after.features, rtol=1e-6)  # int8: a scale may round once more
        assert after.class_ids.shape == (len(before), 5) and (after.class_ids >= 0).all()
    assert RegionStore(tmp_path / "named").extractor.classes == NAMED_WORDS


def test_an_interrupted_naming_resumes_to_the_same_store(tmp_path):
    store, _ = make_captioned(tmp_path, 6)
    namer = make_namer(EXTRACTOR)
    written(store, namer, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        written(store, namer, tmp_path / "parts", limit=4)
    assert written(store, namer, tmp_path / "parts") == (2, 4)
    assert all(map(equal, contents(tmp_path / "whole"), contents(tmp_path / "parts")))


def test_an_image_of_a_fold_is_named_by_the_model_that_was_trained_without_it(tmp_path):
    store, _ = make_captioned(tmp_path, 6)
    namer, others = make_namer(EXTRACTOR), [make_namer(EXTRACTOR, seed) for seed in (1, 2)]
    Folds(others, [["1.jpg"], ["2.jpg", "4.jpg"]]).save(tmp_path / "concepts")
    written(store, namer, tmp_path / "named", Folds.load(tmp_path / "concepts"))
    for regions in contents(tmp_path / "named"):
        expected = {"1.jpg": others[0], "2.jpg": others[1], "4.jpg": others[1]}.get(regions.image_id, namer)
        ids, _ = expected.name(torch.from_numpy(regions.features))
        assert np.array_equal(regions.class_ids, ids.numpy())
    with pytest.raises(UserError, match=r"made by another extractor: parameters\.held_out_names"):
        written(store, namer, tmp_path / "named")


def test_a_store_is_named_once_and_by_concepts_of_its_features(tmp_path):
    store, _ = make_captioned(tmp_path, 2)
    namer = make_namer(EXTRACTOR)
    written(store, namer, tmp_path / "named")
    with pytest.raises(UserError, match="named by another model already; give the store that it was made from"):
        written(tmp_path / "named", namer, tmp_path / "again")
    with pytest.raises(UserError, match="weights aaaaaaaaaaaa, not bbbbbbbbbbbb; train concepts on a store"):
        written(store, make_namer(replace(EXTRACTOR, fingerprint="b" * 64)), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(UserError, match=r"training\.folds=5"):
        Folds.load(tmp_path / "named")
