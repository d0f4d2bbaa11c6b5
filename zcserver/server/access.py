"""The access log: a line for each request, as text or JSON, written by a thread of its own."""

import os
import queue
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Final, Literal, TextIO
from urllib.parse import quote

import msgspec

from zcserver.errors import RESET_NAMES, ConnectionLostError, StreamResetError
from zcserver_protocol.errors import ErrorCode

LogFormat = Literal["text", "json"]
OK: Final = "OK"
_WAITING: Final = 10_000  # lines; more than a disk that stalls should cost in memory
_LONGEST: Final = 1024  # characters of a path: a request may name 16 KiB, and many such cost a disk
_UNUSUAL: Final = re.compile(r"[\x00-\x20\x7f]|[^\x00-\x7f]+")
_encode: Final = msgspec.json.Encoder().encode


def _percent(found: re.Match[str]) -> str:
    text = found[0]
    return text if text.isprintable() and text != " " else quote(text, safe="", errors="surrogatepass")


def _column(text: str) -> str:
    """A peer's words without what could forge lines, colour a terminal or, as spaces do, shift columns."""
    return _cut(_UNUSUAL.sub(_percent, text))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


@dataclass(slots=True)
class Request:
    """One request and what became of it.

    ``time``: when it began, seconds since 1970. ``status``: OK or the reset code's name; LOST and CANCELLED
    when connection or server went away. ``nbytes``: payload carried, in either direction. ``lane``: which way
    the server sent a file: file or copy, else empty. ``to``: the new path of what is renamed. When it has
    ended, both paths are cut after 1024 characters.
    """

    peer: str
    method: str
    path: str
    time: float = field(default_factory=time.time)
    status: str = OK
    nbytes: int = 0
    seconds: float = 0.0
    lane: str = ""
    to: str = ""

    def end(self, error: BaseException | None, seconds: float) -> None:
        self.seconds = round(seconds, 6)
        self.path, self.to = _cut(self.path), _cut(self.to)
        match error:
            case None:
                self.status = OK
            case StreamResetError():
                self.status = RESET_NAMES.get(error.code, str(error.code))
            case ConnectionLostError():
                self.status = "LOST"
            case Exception():
                self.status = ErrorCode.INTERNAL.name
            case _:
                self.status = ErrorCode.CANCELLED.name

    def as_text(self) -> str:
        """``2026-01-31T12:00:00.123Z peer METHOD path status bytes seconds lane [to]``, printable."""
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.time))
        milliseconds = int(self.time % 1 * 1000)
        words = (
            f"{whole}.{milliseconds:03}Z {_column(self.peer)} {self.method} {_column(self.path)} "
            f"{self.status} {self.nbytes} {self.seconds:.3f} {self.lane or '-'}"
        )
        return f"{words} {_column(self.to)}" if self.to else words

    def as_json(self) -> str:
        return _encode(
            {
                "time": round(self.time, 3),
                "peer": self.peer,
                "method": self.method,
                "path": self.path,
                "status": self.status,
                "bytes": self.nbytes,
                "seconds": self.seconds,
                "lane": self.lane or None,
                **({"to": self.to} if self.to else {}),
            }
        ).decode()


class AccessLog:
    """Give ``add`` to a FileServer, and close it at the end: that writes what waits.

    ``path`` is appended to, ``-`` is stderr. A file that was renamed or removed (by log rotation) is begun
    anew. When the disk does not keep up, lines are left out and a line says how many. Raises OSError when the
    file cannot be opened.
    """

    def __init__(self, path: str, log_format: LogFormat = "text") -> None:
        self._path = path
        self._json = log_format == "json"
        self._waiting: queue.Queue[Request | None] = queue.Queue(_WAITING)
        self._omitted = 0
        self._file = self._open()
        self._writer = threading.Thread(target=self._write_all, name="access log", daemon=True)
        self._writer.start()

    def add(self, request: Request) -> None:
        """Log a request that has ended. Never waits."""
        try:
            self._waiting.put_nowait(request)
        except queue.Full:
            self._omitted += 1

    def close(self) -> None:
        """Write what waits, and stop."""
        self._waiting.put(None)
        self._writer.join()
        if self._file is not sys.stderr:
            self._file.close()

    def _open(self) -> TextIO:
        if self._path == "-":
            return sys.stderr
        return open(self._path, "a", encoding="utf-8", errors="backslashreplace")

    def _write_all(self) -> None:
        while (request := self._waiting.get()) is not None:
            omitted, self._omitted = self._omitted, 0
            try:
                self._follow_rotation()
                if omitted:
                    self._file.write(self._note(omitted))
                self._file.write((request.as_json() if self._json else request.as_text()) + "\n")
                if self._waiting.empty():
                    self._file.flush()
            except (OSError, ValueError) as error:  # (ValueError: stderr was closed)
                self._omitted += omitted + 1
                self._complain(error)

    def _note(self, omitted: int) -> str:
        words = f"{omitted} requests could not be logged"
        return _encode({"note": words}).decode() + "\n" if self._json else f"# {words}\n"

    def _follow_rotation(self) -> None:
        if self._file is sys.stderr:
            return
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            replaced = self._open()
            self._file.close()
            self._file = replaced

    def _complain(self, error: Exception) -> None:
        """Once per trouble: when the queue has run empty."""
        if self._waiting.empty() and self._file is not sys.stderr:
            print(f"zcserver: cannot write {self._path}: {error}", file=sys.stderr, flush=True)
