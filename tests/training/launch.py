"""Starts the ranks of a test: several processes on this machine that connect over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**changes):
    """Environment of a test process: one thread and this checkout."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "disabled"}
    return {**os.environ, **ours, "CUDA_VISIBLE_DEVICES": "", **{key: str(value) for key, value in changes.items()}}


def start_ranks(number, *arguments, **changes):
    """Start `python ARGUMENTS` on a number of ranks; returns the processes in the order of ranks."""
    meeting = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **changes}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment(**{"RANK": rank, "LOCAL_RANK": rank, **meeting}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(number)
    ]


def finish(processes, timeout=240):
    """Wait for all of them; returns (exit code, stdout, stderr) in the order of ranks."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
