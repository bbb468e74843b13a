"""Data and a finished run that many tests of training share; they are not changed."""

import pytest

from dimvl.training.run import run_training
from tests.tiny_runs import make_config, make_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Eight images, one of them without regions."""
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3)


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory):
    """A run of 8 steps with dropout that was not interrupted."""
    return run_training(make_config(data, tmp_path_factory.mktemp("runs") / "whole", training={"steps": 8}))
