"""Bodies of control frames: small typed JSON documents, bounded before they are read or sent."""

import math
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec

from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .limits import (
    MAX_CONTROL,
    MAX_FEATURE,
    MAX_FEATURES,
    MAX_FRAME,
    MAX_STREAMS,
    MAX_WINDOW,
    MIN_CONTROL,
    MIN_FRAME,
    MIN_WINDOW,
)
from .streams import Args

MAX_METHOD: Final = 64
# Integers in `args` stay in what every JSON implementation for systems languages can hold.
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1

_METHOD: Final = rf"\A[!-~]{{1,{MAX_METHOD}}}\Z"
_is_method = re.compile(_METHOD).match
_Method = Annotated[str, msgspec.Meta(pattern=_METHOD)]
_Code = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Version = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Feature = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_FEATURE)]


class HelloBody(msgspec.Struct, frozen=True):
    """The first frame of either end. Unknown fields are ignored, here and in every other body."""

    versions: tuple[_Version, _Version]
    max_frame: Annotated[int, msgspec.Meta(ge=MIN_FRAME, le=MAX_FRAME)]
    max_control: Annotated[int, msgspec.Meta(ge=MIN_CONTROL, le=MAX_CONTROL)]
    window: Annotated[int, msgspec.Meta(ge=MIN_WINDOW, le=MAX_WINDOW)]
    max_streams: Annotated[int, msgspec.Meta(ge=0, le=MAX_STREAMS)]
    features: Annotated[tuple[_Feature, ...], msgspec.Meta(max_length=MAX_FEATURES)] = ()
    software: Annotated[str, msgspec.Meta(max_length=128)] = ""


class OpenBody(msgspec.Struct, frozen=True):
    """What the opener wants: a method and a path, both the application's business, and its arguments."""

    method: _Method
    path: str
    args: Args = {}


class ReplyBody(msgspec.Struct, frozen=True):
    """The acceptor takes the stream."""

    args: Args = {}


class ReasonBody(msgspec.Struct, frozen=True):
    """Of RESET and GOAWAY."""

    code: _Code
    reason: str = ""


_Body = TypeVar("_Body", HelloBody, OpenBody, ReplyBody, ReasonBody)
hello_decoder: Final = msgspec.json.Decoder(HelloBody)
open_decoder: Final = msgspec.json.Decoder(OpenBody)
reply_decoder: Final = msgspec.json.Decoder(ReplyBody)
reason_decoder: Final = msgspec.json.Decoder(ReasonBody)
_encode = msgspec.json.Encoder().encode


def decode(decoder: msgspec.json.Decoder[_Body], data: Any, frame: str) -> _Body:
    """Read the body of a frame called ``frame``; RemoteProtocolError(PROTOCOL) if it is not as specified."""
    try:
        body = decoder.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        raise RemoteProtocolError(ErrorCode.PROTOCOL, f"the body of {frame} is malformed: {error}") from None
    for name, value in getattr(body, "args", {}).items():
        if value.__class__ is int and not MIN_INTEGER <= value <= MAX_INTEGER:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, f"argument {name!r} of {frame} exceeds 64 bits")
    return body


def encode_request(method: str, path: str, args: Args, limit: int) -> bytes:
    """The body of OPEN; LocalProtocolError when it cannot be sent (see `check_args`)."""
    if not _is_method(method):
        raise LocalProtocolError(f"method {method!r} must be 1 to {MAX_METHOD} printable ASCII characters")
    if not isinstance(path, str):
        raise LocalProtocolError(f"the path must be a str, not {type(path).__name__}")
    check_args(args)
    return _bounded(OpenBody(method, path, args), limit)


def encode_reply(args: Args, limit: int) -> bytes:
    """The body of REPLY; LocalProtocolError when it cannot be sent (see `check_args`)."""
    check_args(args)
    return _bounded(ReplyBody(args), limit)


def encode_reason(code: int, reason: str, limit: int) -> bytes:
    """The body of RESET or GOAWAY. A reason too long for the peer is cut short: giving up must not fail."""
    if not 0 <= code < 2**32:
        raise LocalProtocolError(f"error code {code} must be 0 to {2**32 - 1}")
    reason = reason.encode("utf-8", "replace").decode()
    body = _encode(ReasonBody(int(code), reason))
    while len(body) > limit:
        reason = reason[: len(reason) // 2]
        body = _encode(ReasonBody(int(code), reason))
    return body


def encode_hello(body: HelloBody) -> bytes:
    """The body of HELLO; its limits were checked where they were made."""
    return _encode(body)


def check_args(args: Args) -> None:
    """LocalProtocolError unless ``args`` is flat: str → str, 64-bit int, finite float, bool or None."""
    if not isinstance(args, dict):
        raise LocalProtocolError(f"args must be a dict, not {type(args).__name__}")
    for name, value in args.items():
        if name.__class__ is not str:
            raise LocalProtocolError(f"argument name {name!r} must be a str")
        kind = value.__class__
        if kind is int:
            if not MIN_INTEGER <= value <= MAX_INTEGER:  # type: ignore[operator]
                raise LocalProtocolError(f"argument {name!r} is an integer beyond 64 bits")
        elif kind is float:
            if not math.isfinite(value):  # type: ignore[arg-type]
                raise LocalProtocolError(f"argument {name!r} is {value}, which JSON cannot carry")
        elif kind is not str and kind is not bool and value is not None:
            raise LocalProtocolError(
                f"argument {name!r} is a {kind.__name__}; it must be a str, int, float, bool or None"
            )


def _bounded(body: OpenBody | ReplyBody, limit: int) -> bytes:
    try:
        encoded = _encode(body)
    except UnicodeEncodeError as error:  # a lone surrogate, say from an undecodable file name
        raise LocalProtocolError(f"text that is not valid Unicode cannot be sent: {error}") from None
    if len(encoded) > limit:
        raise LocalProtocolError(f"the body has {len(encoded)} bytes; the peer takes at most {limit}")
    return encoded
