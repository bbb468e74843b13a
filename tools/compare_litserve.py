"""Compare `dimvl serve` with LitServe around the same Predictor, by the clients of tools/load_server.py.

    pip install litserve==0.2.19
    python -m tools.compare_litserve EXPORT IMAGES QUESTIONS --results docs/results/litserve.json

Both servers run at once and are asked in turn, 8 clients with one question each at a time. The memory is that of all
processes of a server, shared pages divided among those that share them.
"""

import argparse
import asyncio
import base64
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from litserve import LitAPI, LitServer  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dimvl.files import write_json
from dimvl.predictor import Predictor
from tools.load_server import AT_ONCE, ROOT, ask, chosen, get, server

PORT = 8811
SIDES = ("dimvl", "litserve")


class Answers(LitAPI):  # type: ignore[misc]
    """Answers of the Predictor, as the first server of these two gives them."""

    def __init__(self, export: str, threads: int) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.005)
        self.export, self.threads = export, threads

    def setup(self, device: str) -> None:
        """Open the model in the process that computes."""
        torch.set_num_threads(self.threads)
        self.predictor = Predictor.from_pretrained(self.export, "cpu")

    def decode_request(self, request: dict[str, str]) -> tuple[bytes, str]:
        """Read a request."""
        return base64.b64decode(request["image"]), request["question"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Keep a batch as it is."""
        return inputs

    def predict(self, pairs: list[tuple[bytes, str]]) -> list[Any]:
        """Answer a batch."""
        return self.predictor.answer([image for image, _ in pairs], [question for _, question in pairs])

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Give each request its own."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Write what `dimvl serve` writes."""
        return {"answer": output.text, "probability": output.probability, "top": output.top}


def megabytes(processes: Iterable[int]) -> float:
    """Memory of processes; those that have ended have none."""
    total = 0
    for process in processes:
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return round(total / 1024, 1)


def in_group(group: int) -> Iterator[int]:
    """Yield the processes of a group."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                yield int(folder.name)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    images, questions = chosen(arguments)
    contents = [
        json.dumps({"image": base64.b64encode(image).decode(), "question": question}).encode()
        for image, question in zip(images, questions, strict=True)
    ]
    command = [sys.executable, "-m", "tools.compare_litserve", *sys.argv[1:], "--serve"]
    other = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while True:
            try:
                if asyncio.run(get(PORT, "/health")).startswith("HTTP/1.1 200"):
                    break
            except ConnectionError:
                time.sleep(0.1)
        with server(arguments.export, arguments.threads) as (process, port):
            paths = {"dimvl": (port, "/answer"), "litserve": (PORT, "/predict")}
            rates: dict[str, list[float]] = {side: [] for side in SIDES}
            for turn in range(arguments.rounds + 1):
                for side in SIDES:
                    at, path = paths[side]
                    bodies = [(path, "application/json", content) for content in contents]
                    took, _, statuses = asyncio.run(ask(at, bodies, arguments.number, AT_ONCE))
                    assert statuses == {200: arguments.number}, statuses
                    if turn:  # the first is for warming up
                        rates[side].append(round(arguments.number / took, 1))
            memory = {"dimvl": megabytes([process.pid]), "litserve": megabytes(in_group(other.pid))}
    finally:
        os.killpg(other.pid, signal.SIGKILL)
    return {"requests_per_second": rates, "megabytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("images", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--number", type=int, default=400, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hardware", default=platform.processor())
    parser.add_argument("--results", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        served = LitServer(Answers(arguments.export, arguments.threads), accelerator="cpu", workers_per_device=1)
        served.run(port=PORT, host="127.0.0.1", generate_client_file=False, log_level="error")
        return
    facts = {"hardware": arguments.hardware, "threads": arguments.threads, "clients": AT_ONCE}
    found = compare(arguments) | facts | {"date": f"{datetime.date.today()}"}
    print(json.dumps(found))
    if arguments.results:
        command = "python -m tools.compare_litserve EXPORT IMAGES QUESTIONS"
        write_json(arguments.results, found | {"command": command})


if __name__ == "__main__":
    main()
