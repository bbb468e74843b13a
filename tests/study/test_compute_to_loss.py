"""tools/compute_to_loss.py: the share of the steps after which the loss of another run is reached."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import compute_to_loss


def write_log(run: Path, losses: np.ndarray) -> Path:
    run.mkdir()
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses.tolist(), start=1)]
    (run / "log.jsonl").write_text("\n".join([*lines, json.dumps({"step": 100, "validation": 1.0})]) + "\n")
    return run


def test_a_run_that_learns_twice_as_fast_needs_half_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = np.linspace(2.0, 1.0, 200)
    runs = [
        write_log(tmp_path / "baseline", falling),
        write_log(tmp_path / "faster", np.concatenate([falling[::2], np.full(100, 1.0)])),
        write_log(tmp_path / "worse", falling + 0.5),
    ]
    monkeypatch.setattr(sys, "argv", ["compute_to_loss.py", *map(str, [runs[0], *runs])])
    compute_to_loss.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["share"] for one in found] == [1.0, pytest.approx(0.5, abs=0.05), None]  # the mean of a tenth lags
    assert found[0]["final_loss"] == pytest.approx(falling[-20:].mean(), abs=1e-4)
