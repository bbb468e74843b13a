"""The server's stop: what was accepted is finished."""

import logging
import math
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI


class _Server(uvicorn.Server):
    """Stops at SIGINT or SIGTERM, and at once at a second one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Do so without raising the signal again afterwards, as the base class does."""
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(app: FastAPI, address: socket.socket, seconds: float) -> None:
    """Serve until SIGINT or SIGTERM; then refuse connections, and finish the requests that were accepted.

    Args:
        app: the application.
        address: where it listens.
        seconds: the longest that a request takes.

    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each request that is not HTTP
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(seconds) + 1,
    )
    _Server(config).run(sockets=[address])
