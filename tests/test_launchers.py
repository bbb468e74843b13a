"""Files for launchers are read as expected by the shell and by DeepSpeed's own reader, and match their page."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from dimvl.errors import UserError
from dimvl.planning import Cluster, make_plan
from dimvl.tasks import load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "tools" / "slurm_pretrain.sbatch"
EXTRACT = ROOT / "tools" / "slurm_extract.sbatch"
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "pretraining").glob("*.yaml")])


@pytest.mark.parametrize("script", [SCRIPT, EXTRACT], ids=lambda path: path.stem)
def test_the_batch_script_is_read_by_the_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch ") and script.name in done.stderr


def test_a_task_of_an_array_extracts_with_what_it_was_given(tmp_path):
    (tmp_path / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"SLURM_CPUS_PER_TASK": "12", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", EXTRACT, "shards/*.tar", "out", "--where", "grid"]
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == ["-m", "dimvl", "extract", "shards/*.tar", "out", "--where", "grid", "--workers", "11"]


def test_the_batch_script_starts_torchrun_once_a_node_with_what_it_was_given(tmp_path):
    for name, body in {"scontrol": "echo node-a; echo node-b", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**job, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", SCRIPT, "run.yaml", "deepspeed.stage=2"]
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    options = dict(pairwise(words))
    assert words[1] == "torchrun" and words[-3:] == ["pretrain", "run.yaml", "deepspeed.stage=2"]
    assert (options["--nnodes"], options["--nproc-per-node"], options["-m"]) == ("2", "4", "dimvl")
    assert options["--rdzv-endpoint"] == "node-a:24711"


def test_the_hostfile_names_hosts_and_slots_as_deepspeed_reads_them():
    lines = [line for line in (ROOT / "tools" / "hostfile.example").read_text().splitlines() if line[0] != "#"]
    assert lines and all(re.fullmatch(r"\S+ slots=\d+", line) for line in lines)


def test_the_page_names_all_files():
    assert all(f"tools/{script.name}" in PAGE for script in (SCRIPT, EXTRACT)) and "tools/hostfile.example" in PAGE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_shipped_configuration_can_be_planned_without_its_data(path, monkeypatch, tmp_path):
    config = load_config(path)
    monkeypatch.chdir(tmp_path)
    if getattr(config, "self_critical", None) is not None:
        with pytest.raises(UserError, match="plan without drawing, by self_critical=null"):
            make_plan(config, Cluster(gpus=8))
        return
    plan = make_plan(config, Cluster(gpus=8))
    assert plan.fitting is not None and plan.facts.assumed and plan.flops_per_step > 0
