"""The page of `dimvl app` served: only the routes that it needs, and nothing that reads or writes a file by its path.

Gradio can do far more than this page uses: serve cached files, fetch URLs, take uploads, record runs, edit itself. All
that is refused here, before it reaches Gradio, and browsers are told to ask no other host for anything.
"""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from dimvl.app.exports import Exports
from dimvl.app.page import IMAGE_BYTES, build_page, looks

REQUEST_BYTES = IMAGE_BYTES * 4 // 3 + 2**16
"""The largest request: an image file in base64, and some text."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SESSIONS = 64
"""Browsers whose image is kept in memory at a time."""
_PATHS = {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico"} | {
    f"/gradio_api/{name}" for name in ("info", "startup-events", "queue/join", "queue/data", "reset", "cancel")
}
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
"""Gradio's own scripts and styles, and the sign of life of a page."""
_HEADERS = {
    # Gradio's scripts are inline and make functions of templates
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """Passes requests for the page to an ASGI application and refuses all others.

    Args:
        app: the application.
        hosts: names by which it may be addressed; empty for any. Other sites can lead their own name to the loopback
            address, and would then be this page to a browser.

    """

    def __init__(self, app: Any, hosts: tuple[str, ...] = ()) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        status = self._refused(scope)
        if not status and scope["method"] == "POST":
            body = await _read(receive)
            status, receive = 0 if _is_plain(body) else 400, _again(body, receive)
        if status:
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        if scope["path"] == "/":  # its query would name a stored state of the page
            scope = {**scope, "query_string": b""}
        await self.app(scope, receive, _with_headers(send))

    def _refused(self, scope: Any) -> int:
        """Return the status of the refusal of a request by its head; 0 for none."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = re.sub(r":\d*$", "", headers.get("host", ""))
        length = headers.get("content-length", "0")
        if self.hosts and host.strip("[]") not in self.hosts:
            return 403
        if scope["path"] not in _PATHS and not scope["path"].startswith(_FOLDERS):
            return 404
        if "transfer-encoding" in headers or not length.isdecimal():
            return 411
        return 413 if int(length) > REQUEST_BYTES else 0


def _is_plain(body: bytes) -> bool:
    """Whether an event has texts and numbers only: Gradio opens or fetches what else names a file."""
    try:
        event = json.loads(body)
        values = [*(event.get("data") or []), *(event.get("event_data") or {}).values()]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    return all(value is None or isinstance(value, str | int | float) for value in values)


async def _read(receive: Any) -> bytes:
    """Read the body of a request."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Any) -> Callable[[], Any]:
    """Return what gives a body that was read once more, and then what comes after it."""
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receiving() -> Any:
        return next(first, None) or await receive()

    return receiving


def _with_headers(send: Any) -> Callable[[Any], Any]:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return sending


def make_server(exports: Exports, host: str) -> Any:
    """Return the page as a server of uvicorn: `run(sockets=[bound(...)])` serves it, `should_exit` ends it."""
    import uvicorn

    guarded = Guard(asyncio.run(_application(exports)), LOOPBACK if host in LOOPBACK else ())
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "ws": "none"}
    return uvicorn.Server(uvicorn.Config(guarded, timeout_graceful_shutdown=2, **options))


async def _application(exports: Exports) -> Any:
    """Return the page as an ASGI application; without a running loop, Gradio would make several and leave them open."""
    import gradio
    from fastapi import FastAPI

    page = build_page(exports)
    page.state_session_capacity = SESSIONS
    quiet: dict[str, Any] = {"footer_links": [], "run_history": False, "enable_monitoring": False, "ssr_mode": False}
    quiet |= {"mcp_server": False, "pwa": False, "show_error": False, "blocked_paths": ["/"], "max_file_size": 1}
    return gradio.mount_gradio_app(FastAPI(openapi_url=None), page, path="/", **quiet, **looks())
