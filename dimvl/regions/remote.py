"""Images on the web, read with limits of size, time and redirections.

Only addresses that a person gives in Python or on the command line become a `Remote`. A server must not make one of
what a request holds: it may reach places that the one who asks cannot.
"""

import time
from http.client import HTTPException, HTTPMessage
from threading import Thread
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from dimvl.errors import UserError
from dimvl.files import is_url
from dimvl.showing import reason

MAX_BYTES = 2**26
"""The largest file that is read, 64 MiB."""
SECONDS = 30.0
"""The longest time until it is read."""
REDIRECTIONS = 3
REMEDY = "download it yourself, and give the file"
_CHUNK = 2**16


class Remote:
    """An image on the web, which is read when it is needed.

    Args:
        url: its address, http or https.

    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read the file.

        Raises:
            UserError: it is out of reach, larger than `limit` or `MAX_BYTES`, empty, or not read in `SECONDS`.

        """
        if "@" in urlsplit(self.url).netloc:
            raise UserError(f"an address has a user name before {self.url.rpartition('@')[2]}; {REMEDY}")
        found: list[bytes | Exception] = []
        until = time.monotonic() + SECONDS

        def read() -> None:
            try:
                found.append(_fetch(self.url, min(limit, MAX_BYTES), until))
            except Exception as error:
                found.append(error)

        thread = Thread(target=read, daemon=True)  # looking up a name, or lines of a slow header, know no limit
        thread.start()
        thread.join(SECONDS)
        if not found or isinstance(found[0], TimeoutError):
            raise UserError(f"{self} was not read in {SECONDS:g} seconds; {REMEDY}")
        if isinstance(found[0], bytes):
            return found[0]
        if isinstance(found[0], UserError):
            raise found[0]
        raise UserError(f"{self} cannot be read ({_why(found[0])}); check the address, or {REMEDY}")


def _why(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"HTTP {error.code}" if error.code >= 400 else "redirected too often, or not to http"
    return reason(error.reason) if isinstance(error, URLError) and isinstance(error.reason, OSError) else reason(error)


class _Redirections(HTTPRedirectHandler):
    """Follows few redirections, and none from https to http."""

    max_redirections = REDIRECTIONS

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_url(newurl) or (req.type == "https" and not newurl.lower().startswith("https:")):
            fp.close()
            raise UserError(f"{req.full_url} redirects to {newurl}, which is less secure; {REMEDY}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, limit: int, until: float) -> bytes:
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler(), HTTPHandler(), HTTPSHandler(), _Redirections()),
        *(HTTPErrorProcessor(), HTTPDefaultErrorHandler()),
    ):
        opener.add_handler(handler)  # no others: urllib's own opener also knows ftp and file
    data = bytearray()
    try:
        with opener.open(Request(url, headers={"User-Agent": "dimvl", "Accept": "image/*"}), timeout=SECONDS) as answer:
            while chunk := answer.read1(_CHUNK):
                data += chunk
                if len(data) > limit:
                    raise UserError(f"{url} has more than {limit:,} bytes; {REMEDY}")
                if time.monotonic() > until:
                    raise TimeoutError
    except HTTPException as error:  # not an OSError, and without words of its own
        raise OSError(f"no HTTP: {type(error).__name__}") from None
    if not data:
        raise UserError(f"{url} has no content; check the address")
    return bytes(data)
