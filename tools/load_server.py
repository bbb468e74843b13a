"""Load a server on this machine, and compare it with the Predictor on the same images.

    python -m tools.load_server EXPORT IMAGES QUESTIONS --results docs/results/serve.json

EXPORT answers questions, IMAGES is a folder of images, QUESTIONS their question file. The server is the real command in
a process of its own, the clients are tasks of this one, which holds every request ready. In turn, and so on the same
machine under the same load, the Predictor (in a third process) answers lists of 8, and 8 clients ask the server one
question at a time; then the same with 1 and 32 clients. Then follow many requests, of which the memory is watched,
malformed requests, clients that are killed in the middle, and a stop in the middle of requests.
"""

import argparse
import asyncio
import base64
import datetime
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dimvl.data.annotations import read_questions
from dimvl.files import read_json, write_json

ROOT = Path(__file__).parents[1]
AT_ONCE = 8
GOAL = 0.9
BATCHES = "dimvl_batch_requests_count"
Body = tuple[str, str, bytes]
"""Path, content type and content of a request."""


def predictor_side(export: str, threads: int, images: Sequence[bytes], questions: Sequence[str]) -> None:
    """Answer all questions in lists of 8 at each line on standard input, and print the seconds."""
    import torch

    from dimvl.predictor import Predictor

    torch.set_num_threads(threads)
    predictor = Predictor.from_pretrained(export, "cpu")
    for line in sys.stdin:
        number = int(line)
        started = time.perf_counter()
        for start in range(0, number, AT_ONCE):
            part = slice(start, min(start + AT_ONCE, number))
            predictor.answer(images[part], questions[part])
        print(time.perf_counter() - started, flush=True)


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Body) -> tuple[int, bytes]:
    """Send a request over an open connection and read its answer."""
    path, kind, content = body
    head = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", answer.lower())
    found = await reader.readexactly(int(length[1]) if length else 0)
    return int(answer.split()[1]), found


async def ask(port: int, bodies: Sequence[Body], number: int, clients: int) -> tuple[float, list[float], Counter[int]]:
    """Send a number of requests by so many clients; returns seconds in all and of each, and the statuses."""
    left, times, statuses = iter(range(number)), [], Counter[int]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place in left:
            started = time.perf_counter()
            status, _ = await post(reader, writer, bodies[place % len(bodies)])
            times.append(time.perf_counter() - started)
            statuses[status] += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    return time.perf_counter() - started, times, statuses


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def metric(port: int, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", await get(port, "/metrics"), re.MULTILINE)[1])


def memory(process: subprocess.Popen[str]) -> float:
    """Megabytes of a process that are in memory."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def seconds_of(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(export: str, threads: int, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command, and yield it with its port."""
    command = [sys.executable, "-m", "dimvl", "serve", export, "--port", "0", "--threads", str(threads), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        while True:
            try:
                asyncio.run(get(port, "/health"))
                break
            except ConnectionError:
                time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def quantile(times: Sequence[float], share: float) -> float:
    return round(1000 * sorted(times)[int(share * (len(times) - 1))], 1)


def throughput(
    process: subprocess.Popen[str], port: int, other: subprocess.Popen[str], bodies: Sequence[Body], clients: int,
    number: int, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure both sides in turn."""
    rates, waits, spent, bases = [], [], [], []
    earlier = asyncio.run(metric(port, BATCHES))
    for turn in range(rounds + 1):
        other.stdin.write(f"{number}\n")
        other.stdin.flush()
        base = number / float(other.stdout.readline())
        before = seconds_of(process)
        took, times, statuses = asyncio.run(ask(port, bodies, number, clients))
        assert statuses == {200: number}, statuses
        if turn:  # the first is for warming up
            rates.append(number / took)
            bases.append(base)
            spent.append((seconds_of(process) - before) / number)
            waits += times
    ratios = [rate / base for rate, base in zip(rates, bases, strict=True)]
    return {
        "clients": clients,
        "requests_per_round": number,
        "rounds": rounds,
        "server_per_second": [round(rate, 1) for rate in rates],
        "predictor_per_second": [round(base, 1) for base in bases],
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "p50_ms": quantile(waits, 0.5),
        "p95_ms": quantile(waits, 0.95),
        "p99_ms": quantile(waits, 0.99),
        "requests_per_batch": round(number * (rounds + 1) / (asyncio.run(metric(port, BATCHES)) - earlier), 2),
        "server_cpu_ms_per_request": round(1000 * statistics.median(spent), 2),
    }


def steady(process: subprocess.Popen[str], port: int, bodies: Sequence[Body], number: int) -> dict[str, Any]:
    """Send many requests, and watch the memory."""
    seen, times = [], []
    for _ in range(10):
        _, own, statuses = asyncio.run(ask(port, bodies, number // 10, AT_ONCE))
        assert set(statuses) == {200}, statuses
        times += own
        seen.append(round(memory(process), 1))
    return {"requests": number, "megabytes": seen, "p95_ms": quantile(times, 0.95)}


def malformed(image: bytes, number: int) -> Iterator[bytes]:
    """Yield whole HTTP requests, each wrong in one of many ways, drawn from a seed."""
    drawn = random.Random(0)
    good = {"image": base64.b64encode(image).decode(), "question": "what color is the star?"}

    def changed(**values: Any) -> Body:
        return "/answer", "application/json", json.dumps(good | values).encode()

    def image_of(content: bytes) -> Body:
        return changed(image=base64.b64encode(content).decode())

    def json_of(content: bytes) -> Body:
        return "/answer", "application/json", content

    def with_flips(content: bytes) -> bytes:
        flipped = bytearray(content)
        for place in [0, *(drawn.randrange(len(content)) for _ in range(20))]:
            flipped[place] = drawn.randrange(32)  # control characters, which JSON does not allow
        return bytes(flipped)

    whole = changed()
    kinds = ["text/html", "", "application/x-www-form-urlencoded", "a/b;c=d", "multipart/form-data"]
    paths = ["/../../etc/passwd", "/answers", "/static/x", "/answer/..%2f..%2fetc/passwd"]
    odd = [{}, [], -1, 1.5, {"a": [{}]}, [[]]]
    wrongs = [
        lambda: json_of(whole[2][: drawn.randrange(len(whole[2]) - 1)]),
        lambda: json_of(with_flips(whole[2])),
        lambda: image_of(drawn.randbytes(3000)),
        lambda: image_of(image[: drawn.randrange(1, len(image) // 2)]),
        lambda: changed(**{drawn.choice(["image", "question", "top", "times", "images"]): drawn.choice(odd)}),
        lambda: changed(**{"x" * drawn.randrange(1, 9999): 1}),
        lambda: changed(model="../etc"),
        lambda: changed(question=drawn.choice(["", " ", "\u200b", [], ["a", ""]])),
        lambda: ("/answer", drawn.choice(kinds), whole[2]),
        lambda: ("/answer", "multipart/form-data; boundary=x", b"--x\r\n" + drawn.randbytes(drawn.randrange(2000))),
        lambda: (drawn.choice(paths), *whole[1:]),
        lambda: json_of(drawn.choice([b"[", b'{"a":']) * 100_000),
        lambda: json_of(b"A" * (17 * 2**20 if drawn.random() < 0.1 else 1000)),
    ]
    for place in range(number):
        path, kind, content = wrongs[place % len(wrongs)]()
        head = f"POST {path} HTTP/1.1\r\nHost: load\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        yield head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


async def refusals(port: int, image: bytes, number: int) -> dict[str, Any]:
    """Send malformed requests, each over a connection of its own."""
    statuses, wrong = Counter[str](), []
    for request in malformed(image, number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status = head.split()[1].decode() if head else "none"
        statuses[status] += 1
        sentence = json.loads(body or b"{}").get("error", "")
        if not status.startswith("4") or not sentence or "Traceback" in sentence or "\n" in sentence:
            wrong.append((request[:200].decode(errors="replace"), status, sentence[:200]))
    return {"requests": number, "statuses": dict(sorted(statuses.items())), "not_4xx_with_a_sentence": wrong}


async def killed(port: int, bodies: Sequence[Body], number: int) -> dict[str, Any]:
    """Close connections while a request is sent or computed, and wait until the server has forgotten them."""
    drawn = random.Random(1)
    for place in range(number):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        path, kind, content = bodies[place % len(bodies)]
        head = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        sent = head.encode() + (content if place % 2 else content[: drawn.randrange(len(content))])
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(drawn.random() / 50)
        writer.transport.abort()
    for _ in range(100):
        await asyncio.sleep(0.1)
        left = {name: await metric(port, f"dimvl_{name}") for name in ("accepted", "waiting")}
        if not any(left.values()):
            break
    return {"clients": number, **left}


def stopped(process: subprocess.Popen[str], port: int, bodies: Sequence[Body]) -> dict[str, Any]:
    """Ask for a stop while requests are computed."""

    async def some() -> list[int]:
        asked = [asyncio.ensure_future(ask(port, [body], 1, 1)) for body in bodies[:16]]
        while await metric(port, "dimvl_accepted") < len(asked):
            await asyncio.sleep(0)
        process.send_signal(signal.SIGTERM)
        return [status for one in await asyncio.gather(*asked) for status in one[2]]

    statuses = Counter(map(str, asyncio.run(some())))
    code, errors = process.wait(timeout=60), process.stderr.read()
    return {"statuses": dict(statuses), "exit_code": code, "traceback": "Traceback" in errors}


PARTS = ("throughput", "memory", "malformed", "killed", "stop")


def measured(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the results of each part."""
    images, questions = chosen(arguments)
    fields = [
        {"image": base64.b64encode(image).decode(), "question": question}
        for image, question in zip(images, questions, strict=True)
    ]
    bodies = [("/answer", "application/json", json.dumps(own).encode()) for own in fields]
    with server(arguments.export, arguments.threads, "--delay", str(arguments.delay)) as (process, port):
        if "throughput" in arguments.parts:
            with predictor_process() as other:
                for clients in arguments.clients:
                    found = throughput(process, port, other, bodies, clients, arguments.number, arguments.rounds)
                    goal = {"goal": GOAL, "met": found["ratio"] >= GOAL} if clients == AT_ONCE else {}
                    yield f"{clients} clients", found | goal
        if "memory" in arguments.parts:
            yield "memory", steady(process, port, bodies, arguments.many)
        if "malformed" in arguments.parts:
            yield "malformed", asyncio.run(refusals(port, images[0], arguments.malformed))
        if "killed" in arguments.parts:
            yield "killed", asyncio.run(killed(port, bodies, arguments.killed))
        if "stop" in arguments.parts:
            yield "stop", stopped(process, port, bodies)


@contextmanager
def predictor_process() -> Iterator[subprocess.Popen[str]]:
    """Run `predictor_side` with the same arguments."""
    command = [sys.executable, "-m", "tools.load_server", *sys.argv[1:], "--predictor"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def chosen(arguments: argparse.Namespace) -> tuple[list[bytes], list[str]]:
    """Return one question for each of the images, and the files of these."""
    questions = {question.image_ids[0]: question.text for question in read_questions(arguments.questions)}
    files = sorted(arguments.images.iterdir())[: arguments.number]
    pairs = [(file, questions[str(int(file.stem))]) for file in files if str(int(file.stem)) in questions]
    return [file.read_bytes() for file, _ in pairs], [text for _, text in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("images", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on both sides")
    parser.add_argument("--delay", type=float, default=5, help="of the server, in milliseconds")
    parser.add_argument("--number", type=int, default=400, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", nargs="+", type=int, default=[AT_ONCE, 1, 32])
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--killed", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--hardware", default=platform.processor())
    parser.add_argument("--results", type=Path)
    parser.add_argument("--predictor", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predictor:
        predictor_side(arguments.export, arguments.threads, *chosen(arguments))
        return
    for part, found in measured(arguments):
        record = found | {"date": f"{datetime.date.today()}"}
        print(json.dumps({part: record}), flush=True)
        if arguments.results:
            before = read_json(arguments.results) if arguments.results.exists() else {}
            facts = {"hardware": arguments.hardware, "threads": arguments.threads}
            write_json(arguments.results, before | facts | {part: record})


if __name__ == "__main__":
    main()
