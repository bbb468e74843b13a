"""The HTTP interface: one path for each kind of request, and pages about the server."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

import dimvl
from dimvl.errors import UserError
from dimvl.report.page import filled_page
from dimvl.serve import requests
from dimvl.serve.batching import Batcher
from dimvl.serve.jobs import Job, compute
from dimvl.serve.metrics import Metrics
from dimvl.serve.models import Served, choose_model
from dimvl.showing import short

logger = logging.getLogger(__name__)
CLIENT_LEFT = 499
"""Status in the metrics of a request whose client left before the answer, as other servers call it."""
DISCARD_BYTES, DISCARD_SECONDS = 2**26, 5.0
"""What is read at most of a body that is refused."""
MOST_FIELDS = 2048
"""Fields of a form."""
ERRORS = (400, 404, 408, 413, 415, 422, 429, 500, 504)
"""Statuses of an answer that is `{"error": SENTENCE}`."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server accepts.

    Attributes:
        requests: requests that are read, wait or are computed at once; more are refused with 429.
        seconds: until a request is given up with 504.
        bytes: of the body of a request; more are refused with 413.
        batch: images or texts that are computed at once.
        delay: seconds that a request waits for others.

    """

    requests: int = 128
    seconds: float = 30.0
    bytes: int = 2**24
    batch: int = 32
    delay: float = 0.005


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A request that gets a status other than 200 and one sentence."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class Server:
    """The served models, and the state of the requests.

    Args:
        models: by name.
        limits: what is accepted.

    """

    def __init__(self, models: Mapping[str, Served], limits: Limits) -> None:
        self.models, self.limits, self.accepted = models, limits, 0
        self.batcher = Batcher(self._compute, limits.batch, limits.delay)
        self.metrics = Metrics(lambda: self.accepted, lambda: self.batcher.waiting)

    def _compute(self, jobs: Sequence[Job]) -> None:
        with self.metrics.batch(len(jobs)):
            compute(jobs)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Compute requests until the application ends."""
        self.batcher.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.stop)

    async def respond(self, kind: str, request: Request) -> Response:
        """Answer a request of a kind, and count it."""
        started, headers = time.perf_counter(), {}
        try:
            status, content = 200, await self._accept(kind, request)
        except Refused as refused:
            status, content, headers = refused.status, {"error": str(refused)}, dict(refused.headers or {})
        except ClientDisconnect:
            status, content = CLIENT_LEFT, {}
        except Exception:
            logger.exception("a request of the kind %s failed", kind)
            status, content = 500, {"error": "the server failed; see its log"}
        self.metrics.count(kind, status, time.perf_counter() - started)
        return JSONResponse(content, status, headers)

    async def _accept(self, kind: str, request: Request) -> dict[str, Any]:
        if self.accepted >= self.limits.requests:
            seconds = max(1, math.ceil(self.accepted * self.batcher.seconds))
            sentence = f"{self.accepted} requests are waiting, the most that the server takes; try again later"
            await _discard(request)
            raise Refused(429, sentence, {"Retry-After": str(seconds)})
        self.accepted += 1
        job = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                job = await self._read(kind, request)
                self.batcher.put(job)
                return {"model": job.served.name, **await self._result(job, request)}
        except UserError as error:
            raise Refused(422, self._without_paths(error)) from None
        except TimeoutError:
            if job is None:
                raise Refused(
                    408, "the request did not arrive in time; send it again", {"Connection": "close"}
                ) from None
            sentence = f"there was no result within {self.limits.seconds:g} seconds; try again later"
            raise Refused(504, sentence) from None
        finally:
            self.accepted -= 1
            if job is not None:
                job.future.cancel()  # unless it is computed already

    async def _read(self, kind: str, request: Request) -> Job:
        form, body = requests.REQUESTS[kind], await self._body(request)
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in ("application/json", "multipart/form-data"):
            raise Refused(415, f"the content type is {short(media)}; send application/json or multipart/form-data")
        try:
            read = requests.read_request(form, body if media == "application/json" else await _fields(request, body))
        except UserError as error:
            raise Refused(400, str(error)) from None
        try:
            served = choose_model(self.models, read.model, read.verb)
        except UserError as error:
            raise Refused(404, str(error)) from None
        return Job(served, read)

    async def _body(self, request: Request) -> bytes:
        """Read a body of limited size."""
        parts, total, more = [], 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            total, more = total + len(parts[-1]), message.get("more_body", False)
            if total > self.limits.bytes:
                if more:
                    await _discard(request)
                sentence = f"the request has more than {self.limits.bytes:,} bytes; send a smaller image"
                raise Refused(413, sentence, {"Connection": "close"})
        return b"".join(parts)

    async def _result(self, job: Job, request: Request) -> dict[str, Any]:
        """Wait for the result of a job, unless its client leaves."""
        result, left = asyncio.wrap_future(job.future), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((result, left), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientDisconnect
            records = result.result()
        finally:
            left.cancel()
            result.cancel()
        return {"results": records} if job.request.has_list else records[0]

    def _without_paths(self, error: UserError) -> str:
        """Return a sentence that calls models by their names instead of folders."""
        sentence = str(error)
        for served in self.models.values():
            sentence = sentence.replace(str(served.predictor.trained.weights.parent), served.name)
        return sentence


async def _discard(request: Request) -> None:
    """Read the rest of a refused body, within reason: a connection closed before takes the answer with it."""
    total = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while total < DISCARD_BYTES:
                message = await request.receive()
                total += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _left(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _fields(request: Request, body: bytes) -> dict[str, list[str | bytes]]:
    """Read a form: each field with its values, files as bytes; a `UserError` if it is damaged."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    fields: dict[str, list[str | bytes]] = {}
    most = {"max_files": requests.MOST_IMAGES, "max_fields": MOST_FIELDS, "max_part_size": len(body)}
    try:
        parser = MultiPartParser(request.headers, stream(), **most)
        parser.spool_max_size = len(body) + 1  # no file is written
        form = await parser.parse()
        for name, value in form.multi_items():
            fields.setdefault(name, []).append(await value.read() if isinstance(value, UploadFile) else value)
        await form.close()
    except (MultiPartException, KeyError, ValueError) as error:
        raise UserError(f"the form cannot be read ({error}); send multipart/form-data with its boundary") from None
    return fields


def application(server: Server) -> FastAPI:
    """Return the ASGI application: the kinds of requests that a model can answer, and pages about the server."""
    app = FastAPI(title="dimvl", version=dimvl.__version__, docs_url=None, redoc_url=None, lifespan=server.running)
    abilities = {verb for served in server.models.values() for verb in served.abilities}
    kinds = {kind: form for kind, form in requests.REQUESTS.items() if abilities & {*form.verbs}}
    for kind, form in kinds.items():
        app.add_api_route(
            f"/{kind}",
            _endpoint(server, kind),
            methods=["POST"],
            summary=form.__doc__,
            operation_id=kind,
            openapi_extra={"requestBody": {"required": True, "content": _schemas(form)}},
            responses={status: {"description": HTTPStatus(status).phrase} for status in ERRORS},
        )
    page = filled_page(
        Path(__file__).with_name("page.html.jinja"),
        title="dimvl serve",
        models=server.models.values(),
        kinds={kind: (form.__doc__, form.model_json_schema()) for kind, form in kinds.items()},
    )
    app.add_api_route("/docs", lambda: HTMLResponse(page), summary="A page about the server.")
    app.add_api_route("/", lambda: HTMLResponse(page), include_in_schema=False)
    app.add_api_route("/models", lambda: _models(server), summary="The models and what they can do.")
    app.add_api_route("/health", lambda: _health(server), summary="Whether the server computes requests.")
    app.add_api_route(
        "/metrics",
        lambda: Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST),
        summary="Counts, times and memory for Prometheus.",
    )
    app.add_exception_handler(HTTPException, _refuse)  # type: ignore[arg-type]
    return app


def _endpoint(server: Server, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await server.respond(kind, request)

    return endpoint


def _schemas(form: type[requests.Request]) -> dict[str, Any]:
    schema = form.model_json_schema()
    return {media: {"schema": schema} for media in ("application/json", "multipart/form-data")}


def _models(server: Server) -> Response:
    every = {
        name: {"abilities": served.abilities, "synthetic": served.predictor.trained.synthetic}
        for name, served in server.models.items()
    }
    return JSONResponse(every)


def _health(server: Server) -> Response:
    alive = server.batcher.is_alive
    return JSONResponse({"status": "ok" if alive else "nothing is computed"}, 200 if alive else 503)


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Say in a sentence that there is no such path or method."""
    await _discard(request)
    sentence = f"{request.method} {short(request.url.path)} is not served; see /docs"
    return JSONResponse({"error": sentence}, error.status_code, error.headers)
