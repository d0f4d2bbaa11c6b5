"""The first exchange: HELLO of both ends, and what follows from the two of them."""

from typing import Any, Final

from .control import HelloBody, decode, encode_hello, hello_decoder
from .errors import ErrorCode, NotZCPError, RemoteProtocolError
from .events import Hello
from .frames import HELLO, PREFACE, pack
from .limits import Limits, is_feature

LOWEST_VERSION: Final = 1
HIGHEST_VERSION: Final = 1
SOFTWARE: Final = "zcserver"


def greeting(limits: Limits) -> bytes:
    """The preface and our HELLO."""
    body = encode_hello(
        HelloBody(
            versions=(LOWEST_VERSION, HIGHEST_VERSION),
            max_frame=limits.max_frame,
            max_control=limits.max_control,
            window=limits.window,
            max_streams=limits.max_streams,
            features=tuple(limits.features),
            software=SOFTWARE,
        )
    )
    return PREFACE + pack(HELLO, length=len(body)) + body


def check_preface(data: Any) -> None:
    """NotZCPError (PROTOCOL) if these 8 bytes are something else's."""
    if data != PREFACE:
        raise NotZCPError(bytes(data))


def meet(data: Any, limits: Limits) -> Hello:
    """Judge the peer's HELLO body and settle the version and the features in force.

    RemoteProtocolError: PROTOCOL when it is malformed, VERSION when the ranges do not meet.
    """
    body = decode(hello_decoder, data, "HELLO")
    lowest, highest = body.versions
    version = min(highest, HIGHEST_VERSION)
    if version < lowest or version < LOWEST_VERSION:
        raise RemoteProtocolError(
            ErrorCode.VERSION,
            f"the peer speaks ZCP versions {lowest} to {highest}, "
            f"this end {LOWEST_VERSION} to {HIGHEST_VERSION}",
        )
    peer = Limits(
        max_frame=body.max_frame,
        max_control=body.max_control,
        window=body.window,
        max_streams=body.max_streams,
        features=tuple(feature for feature in body.features if is_feature(feature)),
    )
    return Hello(peer, version, frozenset(limits.features) & frozenset(peer.features), body.software)
