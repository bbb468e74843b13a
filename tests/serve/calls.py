"""Requests to an application in this process."""

import asyncio
import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from dimvl.serve.app import Limits, Server, application
from dimvl.serve.models import Served


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@contextmanager
def served(models: Mapping[str, Served], start: bool = True, **limits: Any) -> Iterator[tuple[Server, FastAPI]]:
    """An application whose batches are computed from now on, or as soon as the test starts them."""
    server = Server(models, Limits(**limits))
    app = application(server)
    if start:
        server.batcher.start()
    yield server, app
    if server.batcher.is_alive:
        server.batcher.stop()
    assert server.accepted == server.batcher.waiting == 0


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60)


def send(app: FastAPI, *calls: tuple[str, Mapping[str, Any]], server: Server | None = None) -> list[httpx.Response]:
    """Post requests at once; with a server, its batches start when all of them wait."""

    async def every() -> list[httpx.Response]:
        async with client(app) as one:
            sent = asyncio.gather(*[one.post(path, **given) for path, given in calls])
            if server is not None:
                for _ in range(500):
                    if server.batcher.waiting == len(calls):
                        break
                    await asyncio.sleep(0.01)
                server.batcher.start()
            return await sent

    return asyncio.run(every())


def get(app: FastAPI, path: str) -> httpx.Response:
    async def one() -> httpx.Response:
        async with client(app) as open_client:
            return await open_client.get(path)

    return asyncio.run(one())
