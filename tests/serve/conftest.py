"""Exports that are served."""

from pathlib import Path

import pytest

from dimvl.export import export
from dimvl.serve.models import Served, open_models
from tests.exports import all_abilities, make_detector, make_trained, write_run


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two exports of untrained models with one detector: `able` can all, `labels` classifies only."""
    place = tmp_path_factory.mktemp("exports")
    detector = make_detector()
    detector.save(place / "detector")
    extractor = detector.extractor
    labels = all_abilities(extractor, answers=(), captions=False, matches=False, labels=("star", "circle"))
    made = {
        "able": make_trained(all_abilities(extractor, max_images=3, aligns=True, grounds=True, times=True)),
        "labels": make_trained(labels, seed=1),
    }
    for name, trained in made.items():
        export(write_run(place / "runs" / name, trained), place / name, place / "detector")
    return place


@pytest.fixture(scope="session")
def models(exports: Path) -> dict[str, Served]:
    return open_models([str(exports / "able"), f"second={exports / 'labels'}"], [], "cpu")
