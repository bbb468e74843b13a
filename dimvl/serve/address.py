"""The address at which a server is reached."""

import socket

from dimvl.errors import UserError


def bound(host: str, port: int) -> socket.socket:
    """Take an address, at which connections are refused until it listens; port 0 takes a free one.

    Raises:
        UserError: it is in use, not an address of this machine, or not allowed.

    """
    address = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Told of TCP, asyncio turns off Nagle's algorithm, with which an answer may wait 40 ms for the client.
        address = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address.bind((host, port))
    except (OSError, OverflowError) as error:
        if address is not None:
            address.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host} port {port} cannot be opened ({reason}); give another --port or --host") from None
    return address
