"""What else may knock: how a peer that does not speak ZCP/1 is recognised, and answered in its own words."""

from typing import Final

_EXPLANATION: Final = (
    b"This port speaks ZCP/1 (zcserver), not HTTP. Connect with zcserver at both ends, "
    b"for example: zcserver get zc://HOST:PORT/PATH\n"
)
_HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n\r\n" % len(_EXPLANATION)
)
# RFC 9110, section 9; PRI is the preface of HTTP/2 (RFC 9113, section 3.4).
_METHODS: Final = (
    b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH ", b"PRI ",
)  # fmt: skip
# A fatal alert of TLS 1.0 form, "protocol_version" (RFC 8446, section 6.2): clients report it by name.
_TLS_ALERT: Final = bytes.fromhex("15 0301 0002 02 46")


def recognise(began: bytes) -> tuple[str, bytes]:
    """What begins with these 8 bytes, in words, and the answer in its own protocol (empty: none is known)."""
    if any(began.startswith(method[: len(began)]) for method in _METHODS):
        return "an HTTP request", _HTTP_ANSWER + (b"" if began.startswith(b"HEAD ") else _EXPLANATION)
    if began.startswith(b"\x16\x03"):
        return "a TLS handshake", _TLS_ALERT
    if began.startswith(b"HTTP/"):
        return "an HTTP answer", b""
    if began.startswith(b"\x15\x03"):
        return "a TLS alert", b""
    if began.startswith(b"SSH-"):
        return "an SSH greeting", b""
    return "nothing that is known here", b""
