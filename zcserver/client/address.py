"""URLs of file servers.

``zc://host[:port]/path`` goes over TCP, ``zc+unix://%2Frun%2Fzc.sock/path`` over the socket /run/zc.sock.
"""

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from zcserver.connection import DEFAULT_PORT
from zcserver.errors import MisuseError
from zcserver.file_protocol import escape_undecodable

_TCP: Final = re.compile(
    r"zc://(\[[0-9a-fA-F:.]+(?:%[^\[\]/]+)?\]|[^/:\[\]]+)(?::([0-9]{1,5}))?(/.*)?", re.DOTALL
)
_UNIX: Final = re.compile(r"zc\+unix://([^/]+)(/.*)?", re.DOTALL)


class UrlError(MisuseError, ValueError):
    """The URL is not of the form ``zc://host[:port]/path`` or ``zc+unix://%2Fsocket/path``."""


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL; ``path`` begins with a slash and keeps its ``%`` escapes.

    ``socket`` is the Unix socket's file; then ``host`` is empty and ``port`` 0.
    """

    host: str
    port: int
    path: str
    socket: str = ""


def is_url(text: str) -> bool:
    """Whether this is meant to be a URL of a file server, right or wrong, and not a local path."""
    return text.startswith(("zc://", "zc+unix:"))


def parse_url(url: str) -> Address:
    """Read a URL. Only ``%`` is special in the path: write ``%25`` for it. UrlError if it is none."""
    if url.startswith("zc+unix:"):
        over_unix = _UNIX.fullmatch(url)
        socket = unquote_to_bytes(escape_undecodable(over_unix[1])) if over_unix is not None else b""
        if over_unix is None or b"\0" in socket:
            raise UrlError(
                f"{url!r} is not of the form zc+unix://%2Frun%2Fzc.sock/path: "
                "write the socket's own path with %2F for each slash"
            )
        return Address("", 0, escape_undecodable(over_unix[2] or "/"), os.fsdecode(socket))
    match = _TCP.fullmatch(url)
    if match is None or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
        raise UrlError(f"{url!r} is not of the form zc://host[:port]/path, such as zc://127.0.0.1/data.bin")
    return Address(match[1].strip("[]"), int(match[2] or DEFAULT_PORT), escape_undecodable(match[3] or "/"))
