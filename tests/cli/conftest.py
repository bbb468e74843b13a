"""What tests of the command line start from."""

from functools import partial
from pathlib import Path

import pytest

from dimvl.export import export
from tests.cli.calls import Run, call, write_config
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.tiny_runs import TinyData, make_data


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`dimvl ARGUMENTS` in this process; descriptors are captured, since torch and others write past Python."""
    return partial(call, monkeypatch, capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model that answers, captions, matches and aligns."""
    place = tmp_path_factory.mktemp("model")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(
        place / "run",
        make_trained(all_abilities(detector.extractor, max_images=3, aligns=True, grounds=True)),
        description="photographs",
    )
    return export(run, place / "export", place / "detector")


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    make_image().save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def data(tmp_path: Path) -> TinyData:
    return make_data(tmp_path / "data")


@pytest.fixture
def config(tmp_path: Path, data: TinyData) -> Path:
    """A pretraining of six steps, saved every second one."""
    return write_config(tmp_path, data, "pretrain")
