"""Random changes of every kind of file; `tests/fuzz/` has what they are and what counts as a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FULL = os.environ.get("DIMVL_FAULTS") == "full"


@pytest.mark.slow
def test_no_changed_file_gives_another_result_in_silence_a_traceback_a_hang_or_a_full_memory():
    count = ["--trials", "100000", "--jobs", str(os.cpu_count())] if FULL else ["--trials", "150"]
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *count], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " 0 failed" in done.stdout, done.stdout + done.stderr
