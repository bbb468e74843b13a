"""The Hugging Face hub: downloading an export, and what its client raises as one sentence without a token."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dimvl.errors import UserError

_SECRETS = re.compile(r"\bhf_\w+|(?<=Bearer )\S+|(?<=\?)[^\s']+")
"""Tokens, and queries of addresses: signed ones let their reader in."""
_CONNECTION = {"ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "WriteError", "RemoteProtocolError"}
"""Names of exceptions of httpx, of which the client uses one version or another."""
STATUS = {
    401: ("does not accept the token", "log in with `hf auth login`, or set HF_TOKEN to a valid one"),
    403: ("refuses this to the token", "use a token with write access, or a name of an owner that you belong to"),
    404: ("has no such model or revision, or hides it from you", "check the name, or log in with `hf auth login`"),
    409: ("says that it exists already or is in use", "try again, or give another name"),
    412: ("has a newer commit than the one seen before", "look at it, and push again"),
    413: ("finds a file too large", "check its limits, or give a smaller model"),
    429: ("has had too many requests from you", "wait some minutes, and try again"),
}
"""What an HTTP status says about a model, and what can be done."""


def download(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model on the hub, downloaded once.

    Args:
        name: owner/name.
        revision: branch, tag or commit; by default the newest of the main branch.

    Raises:
        UserError: as `hub_errors`.

    """
    from huggingface_hub import snapshot_download

    with hub_errors(name if revision is None else f"{name} at revision {revision}"):
        return Path(snapshot_download(name, revision=revision))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises in the block, which may be of any type, into a `UserError` about a model."""
    loggers = [
        logging.getLogger(one) for one in [*logging.root.manager.loggerDict] if one.startswith("huggingface_hub")
    ]
    for logger in loggers:
        logger.addFilter(_hide)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what, remedy = _told(error)
        raise UserError(f"{name}: {what}; {remedy}") from None
    finally:
        for logger in loggers:
            logger.removeFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    """Remove tokens from a message of the client, which passes on what the hub says."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


def _told(error: BaseException) -> tuple[str, str]:
    """Return what is wrong, and what can be done."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    cause: BaseException | None = error
    while cause is not None:  # the client's own words may hide the reason
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if isinstance(cause, RepositoryNotFoundError):
            status = 404  # the hub answers 401 to those who may not know whether it exists
        if isinstance(cause, LocalTokenNotFoundError):
            return "pushing needs a token of the hub", "log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids contacting the hub", "unset it"
        if status in STATUS:
            return f"the hub {STATUS[status][0]} (HTTP {status})", STATUS[status][1]
        if status >= 500:
            return f"the hub failed (HTTP {status})", "try again later"
        if type(cause).__name__ in _CONNECTION:
            return f"the hub at {constants.ENDPOINT} cannot be reached ({_said(cause)})", "check the network"
        cause = cause.__cause__
    return f"the hub's client failed ({_said(error)})", "check the name and the network, and try again"


def _said(error: BaseException) -> str:
    """Return what an exception of the client says."""
    return without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__


def without_secrets(text: str) -> str:
    """Remove tokens and the queries of addresses from a text."""
    from huggingface_hub import get_token

    token = get_token()
    return _SECRETS.sub("...", text.replace(token, "...") if token else text)
