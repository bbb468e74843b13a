"""What holds for every test."""

import logging

import pytest
import torch

from dimvl import cpu

cpu.configure()


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    """Restore torch's threads, which `--threads` sets for the whole process and on which sums depend."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def as_much_logged_as_before():
    """Restore the levels of dimvl's loggers, which commands set for the whole process and on which messages depend."""
    yield
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "dimvl"]:
        logging.getLogger(name).setLevel(logging.NOTSET)
