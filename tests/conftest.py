"""What holds for every test."""

import pytest
import torch

from dimvl import cpu

cpu.configure()


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    """Commands with `--threads` set torch's threads for the whole process, and sums depend on their number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
