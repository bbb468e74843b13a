"""The command `dimvl serve`: its address, its stop, its mistakes."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import dimvl.cli.serving
from dimvl.serve.address import bound
from dimvl.serve.app import Limits, Server, application
from dimvl.serve.models import Served
from tests.cli.calls import call, refused
from tests.exports import make_image
from tests.serve.calls import png


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command, and yield it with its address; it is killed in the end."""
    words = [sys.executable, "-m", "dimvl", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_sigterm_refuses_new_requests_and_finishes_those_that_wait(exports: Path) -> None:
    image = png(make_image(1))
    with command(exports / "able", "--delay", 1000, "--threads", 1) as (process, address):
        for _ in range(300):  # the address is told before it is open
            try:
                assert httpx.get(f"{address}/health").json() == {"status": "ok"}
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        idle = httpx.Client()
        assert idle.get(f"{address}/models").status_code == 200
        found: list[httpx.Response] = []
        form = {"files": {"image": image}, "timeout": 30}
        sender = threading.Thread(target=lambda: found.append(httpx.post(f"{address}/caption", **form)))
        sender.start()
        while "dimvl_accepted 1.0" not in idle.get(f"{address}/metrics").text:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        refusals = 0
        while process.poll() is None and refusals < 3:
            try:
                httpx.post(f"{address}/caption", **form)
            except httpx.TransportError:
                refusals += 1
            time.sleep(0.05)
        sender.join()
        idle.close()
        assert process.wait(timeout=30) == 0
        assert found[0].status_code == 200 and found[0].json()["caption"]
        assert refusals
        out, errors = process.communicate()
        assert out == "" and "Traceback" not in errors and len(errors.splitlines()) <= 1, errors


def test_mistakes_are_one_sentence(
    exports: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    able = exports / "able"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(call(monkeypatch, capfd, "serve", able, "--port", port), f"127.0.0.1 port {port} cannot be opened")
    refused(call(monkeypatch, capfd, "serve", able, "--host", "192.0.2.1"), "192.0.2.1 port 8000 cannot be opened")
    refused(call(monkeypatch, capfd, "serve", exports / "none", "--port", 0), "none")
    refused(call(monkeypatch, capfd, "serve", able, "--port", 0, "--adapter", f"x={able}"), "adapter")
    monkeypatch.setattr(dimvl.cli.serving, "find_spec", lambda name: None if name == "python_multipart" else name)
    refused(call(monkeypatch, capfd, "serve", able), "serving needs python-multipart; pip install 'dimvl[serve]'")


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_what_was_sent_before() -> None:
    async def nodelay() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bound("127.0.0.1", 0) as address:
            async with await asyncio.start_server(connected, sock=address):
                _, writer = await asyncio.open_connection(*address.getsockname())
                writer.close()
                return await accepted

    assert asyncio.run(nodelay())


def test_a_second_signal_ends_a_server_at_once(models: dict[str, Served]) -> None:
    import uvicorn

    from dimvl.serve.running import _Server

    server = _Server(uvicorn.Config(application(Server(models, Limits()))))
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit and not server._captured_signals
