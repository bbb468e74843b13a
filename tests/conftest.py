"""What holds for every test."""

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
