"""The package as its users see it: top-level names, version, import time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dimvl
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.trained_model import load_model

ROOT = Path(__file__).parents[1]


def output_of(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_top_level_offers_the_public_names():
    assert (dimvl.Predictor, dimvl.load_model, dimvl.RegionStore) == (Predictor, load_model, RegionStore)
    assert {*dimvl.__all__} == {"Predictor", "RegionStore", "__version__", "load_model"} <= {*dir(dimvl)}
    with pytest.raises(AttributeError, match="module 'dimvl' has no attribute 'predict'"):
        _ = dimvl.predict


def test_importing_dimvl_takes_less_than_a_tenth_of_a_second_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import dimvl; dir(dimvl); dimvl.__version__\n"
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    seconds, torch_is_loaded = min((output_of("-c", code).split() for _ in range(3)), key=lambda words: float(words[0]))
    assert float(seconds) < 0.1 and torch_is_loaded == "False"


def test_the_version_is_the_same_on_the_command_line_and_heads_the_changelog():
    assert output_of("-m", "dimvl", "--version") == f"dimvl {dimvl.__version__}"
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dimvl.__version__ in headings[:2], "the newest version, perhaps after Unreleased"
