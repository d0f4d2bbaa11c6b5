"""The settings of ``zcserver serve``: defaults < a TOML file < ``ZCSERVER_*`` variables < the command line.

Whatever its source, a value is read by the one function of its setting, and an error names the source.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import typer

from zcserver.connection import DEFAULT_PORT
from zcserver.context import MIB
from zcserver.errors import printable
from zcserver.listeners import EVERYWHERE
from zcserver.server.access import LogFormat
from zcserver.server.cgroup import affordable
from zcserver.server.paths import LinkPolicy
from zcserver.topic_protocol import MAX_NAME
from zcserver.topics.topic import is_topic

from .exits import CommandError, ExitCode
from .options import lanes_of, parse_lanes, parse_memory, parse_size
from .pieces import AS_IT_COMES, parse_form

CONFIG: Final = "ZCSERVER_CONFIG"
_PREFIX: Final = "ZCSERVER_"
_POOL: Final = 64 * MIB
_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off"}
_HOST_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(.+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What ``serve_directory`` does. Sizes are bytes, ``limit_rate`` bytes per second, ``grace`` seconds.

    ``roots``: (name, directory) pairs; the only one may have no name. ``unix``: paths of sockets.
    ``access_log``: a path, ``-`` for stderr, or empty for none. ``stdin``: the topic that standard input is
    published to, or empty; ``stdin_as``: see :mod:`.pieces`. ``retain_seconds``: 0 for no limit.
    """

    roots: tuple[tuple[str, str], ...]
    topics: bool
    stdin: str
    stdin_as: int
    retain: int
    retain_count: int
    retain_seconds: float
    allow_block: bool
    binds: tuple[tuple[str, int], ...]
    unix: tuple[str, ...]
    writable: bool
    hidden: bool
    links: LinkPolicy
    pool_size: int
    limit_rate: int
    lanes: tuple[str, ...] | None
    grace: float
    access_log: str
    log_format: LogFormat
    summary: bool


# -- reading one value: from text, or from what TOML has for it; ValueError says what is wrong -------


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"{value!r} is neither true nor false")


def _size(value: Any, parse: Callable[[str], int] = parse_size) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no size; write 4096, 64M or 1.5G")
    return parse(str(value))


def _memory(value: Any) -> int:
    return _size(value, parse_memory)


def _port(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 65536:
        raise ValueError(f"{value!r} is no port; write a number from 0 to 65535 (0: any free one)")
    return value


def _seconds(value: Any) -> float:
    try:
        seconds = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{value!r} is no number of seconds")
    return seconds


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    if "\0" in value:
        raise ValueError(f"{value!r} has a null byte, which no name can have")
    return value


def _texts(value: Any) -> list[str]:
    """A list, or text with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{value!r} is no list of texts")
    return [_text(one) for one in value]


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no number of messages")
    return value


def _topic(value: Any) -> str:
    name = _text(value)
    if name and not name.startswith("/"):
        name = f"/{name}"
    if name and not is_topic(name):
        raise ValueError(f"{name!r} is no topic: a name is printable and has at most {MAX_NAME} characters")
    return name


def _form(value: Any) -> int:
    return parse_form(str(value))


def _lanes(value: Any) -> str:
    return parse_lanes(",".join(_texts(value)))


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return read


def _roots(value: Any) -> list[tuple[str, str]]:
    """``DIR`` or ``NAME=DIR``; in TOML also a table of names and directories."""
    if isinstance(value, dict):
        return [(_text(name), _text(directory)) for name, directory in value.items()]
    pairs = []
    for one in _texts(value):
        name, equals, directory = one.partition("=")
        named = bool(equals) and "/" not in name
        pairs.append((name, directory) if named else ("", one))
    return pairs


def _binds(value: Any) -> list[tuple[str, int | None]]:
    """(host, port or None) pairs; a Unix socket has its path for a host, with the ``unix:`` before it."""
    binds = [parse_bind(one) for one in _texts(value)]
    if not binds:
        raise ValueError(f"{value!r} names no address; write 127.0.0.1, or leave it out")
    return binds


def parse_bind(text: str) -> tuple[str, int | None]:
    """One address to listen on, see :func:`_binds`; ValueError says what is wrong with it."""
    if text.startswith("unix:"):
        if text == "unix:":
            raise ValueError("unix: needs a path behind it")
        return text, None
    if text.count(":") > 1 and "[" not in text:
        return text, None  # IPv6 without a port
    match = _HOST_PORT.fullmatch(text)
    host = match and (match[1] or match[2])
    if match is None or not host or host.isdigit():
        raise ValueError(
            f"{text!r} is no address; write 127.0.0.1:{DEFAULT_PORT}, [::1]:{DEFAULT_PORT}, "
            f"*:{DEFAULT_PORT} for all of them, or only --port"
        )
    return host, _port(match[3]) if match[3] else None


# -- the settings ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its key in TOML, how a value is read, its default as text, and a line of help."""

    key: str
    read: Callable[[Any], Any]
    default: str
    help: str

    @property
    def option(self) -> str:
        return "DIR" if self.key == "roots" else "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return _PREFIX + self.key.upper()


SETTINGS: Final = (
    Setting("roots", _roots, "", "the directories to offer: DIR, or several as NAME=DIR"),
    Setting("bind", _binds, "127.0.0.1", "where to listen: HOST, HOST:PORT, *, unix:/path; several allowed"),
    Setting("port", _port, str(DEFAULT_PORT), "for addresses that name none; 0: any free one"),
    Setting("topics", _flag, "false", "let clients publish to topics, and subscribe"),
    Setting("stdin", _topic, "", "the topic that standard input is published to"),
    Setting("stdin_as", _form, "", "how it is cut: 'lines', 'frame', a size; default: as it comes"),
    Setting("retain", _memory, "16M", "how much of each topic is kept for those who come later"),
    Setting("retain_count", _count, "1024", "how many messages of each topic are kept at most"),
    Setting("retain_seconds", _seconds, "0", "for how long they are kept at most; 0: no limit"),
    Setting("allow_block", _flag, "false", "let subscribers have publishers wait for them"),
    Setting("writable", _flag, "false", "let clients put, make, rename and remove files"),
    Setting("hidden", _flag, "true", "serve names that begin with a dot"),
    Setting("links", _one_of("follow", "refuse"), "follow", "symbolic links that stay below DIR"),
    Setting(
        "pool_size",
        _memory,
        "",
        "memory for sending; default 64M (2 x retain), or a quarter of the cgroup's limit",
    ),
    Setting("limit_rate", _size, "0", "bytes per second for each connection; 0: no limit"),
    Setting("lanes", _lanes, "", "use only these ways to send; default: all that work here"),
    Setting("grace", _seconds, "30", "seconds for running transfers after a signal"),
    Setting("access_log", _text, "", "a line for each request to this file; - for stderr"),
    Setting("log_format", _one_of("text", "json"), "text", "how the access log is written"),
    Setting("summary", _flag, "false", "at the end, print the totals as JSON"),
)
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}


def serve_settings(
    given: Mapping[str, Any], config: str | None = None, environment: Mapping[str, str] = os.environ
) -> ServeSettings:
    """Merge the sources. ``given``: what the command line said, by key; None and empty lists say nothing.

    ``config`` is the path of the TOML file (else ZCSERVER_CONFIG names it, else there is none). Raises
    CommandError (USAGE) with one line for what is unknown or wrong.
    """
    merged: dict[str, Any] = {setting.key: setting.read(setting.default) for setting in _with_default()}
    path = config or environment.get(CONFIG)
    for source in (_from_file(path) if path else (), _from_environment(environment), _from_options(given)):
        for setting, value, name in source:
            try:
                merged[setting.key] = setting.read(value)
            except (ValueError, typer.BadParameter) as error:
                raise _wrong(f"{name}: {error}") from None
    settings = _settings(merged)
    _check_effect(given, settings)
    return settings


def _check_effect(given: Mapping[str, Any], settings: ServeSettings) -> None:
    """Refuse options that change nothing. (A file, or the environment, may be for several servers.)"""
    if given.get("stdin_as") and not settings.stdin:
        raise _wrong("--stdin-as is for standard input: add --stdin TOPIC")
    if not (settings.topics or settings.stdin):
        for key in ("retain", "retain_count", "retain_seconds", "allow_block"):
            if given.get(key):
                raise _wrong(f"{_BY_KEY[key].option} is for topics: add --topics")


def _with_default() -> Iterator[Setting]:
    return (setting for setting in SETTINGS if setting.default)


def _from_file(path: str) -> Iterator[tuple[Setting, Any, str]]:
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(f"cannot read the settings in {path}: {error.strerror}") from None
    except ValueError as error:  # (a number of too many digits is none of TOML's own errors)
        raise _wrong(f"{path} is no TOML: {error}") from None
    for key, value in values.items():
        setting = _BY_KEY.get(key)
        if setting is None:
            raise _wrong(f"{path}: there is no setting {key!r}{_suggestion(key, _BY_KEY)}")
        if setting.read is _flag and not isinstance(value, bool):
            raise _wrong(f"{path}: {key}: {value!r} is neither true nor false (without quotes)")
        yield setting, value, f"{path}: {key}"


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[Setting, Any, str]]:
    variables = {setting.variable: setting for setting in SETTINGS}
    for name, value in environment.items():
        if name in variables:
            if value:
                yield variables[name], value, name
        elif name.startswith(_PREFIX) and name != CONFIG and (hint := _suggestion(name, variables)):
            # Other commands have variables of their own; only a slip of the pen is an error.
            raise _wrong(f"there is no variable {name}{hint}")


def _from_options(given: Mapping[str, Any]) -> Iterator[tuple[Setting, Any, str]]:
    for key, value in given.items():
        if value is not None and value not in ([], ()):
            yield _BY_KEY[key], value, _BY_KEY[key].option


def _suggestion(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.85)
    return f" (did you mean {close[0]}?)" if close else ""


def _settings(merged: dict[str, Any]) -> ServeSettings:
    binds = [(host, merged["port"] if port is None else port) for host, port in merged["bind"]]
    with_topics = bool(merged["topics"] or merged.get("stdin"))
    pool_size, retain = merged.get("pool_size", 0), merged["retain"]
    if with_topics:
        pool_size, retain = _shares(pool_size, retain)
    return ServeSettings(
        roots=_named(merged.get("roots", []), optional=with_topics),
        topics=merged["topics"],
        stdin=merged.get("stdin", ""),
        stdin_as=merged.get("stdin_as", AS_IT_COMES),
        retain=retain,
        retain_count=merged["retain_count"],
        retain_seconds=merged["retain_seconds"],
        allow_block=merged["allow_block"],
        binds=tuple((host, port) for host, port in binds if not host.startswith("unix:")),
        unix=tuple(host.removeprefix("unix:") for host, _ in binds if host.startswith("unix:")),
        writable=merged["writable"],
        hidden=merged["hidden"],
        links=cast("LinkPolicy", merged["links"]),
        pool_size=pool_size or affordable(_POOL),
        limit_rate=merged["limit_rate"],
        lanes=lanes_of(merged.get("lanes", "")),
        grace=merged["grace"],
        access_log=merged.get("access_log", ""),
        log_format=cast("LogFormat", merged["log_format"]),
        summary=merged["summary"],
    )


def _shares(pool_size: int, retain: int) -> tuple[int, int]:
    """The pool's size, and what each topic retains of it: half of it at most, the rest is under way."""
    if not retain:
        raise _wrong("--retain: a topic has to retain at least one byte")
    if not pool_size:
        pool_size = affordable(max(_POOL, 2 * retain))
        retain = min(retain, pool_size // 2)
    if pool_size < 2 * retain:
        raise _wrong(
            f"a pool of {pool_size} bytes is too small for topics that retain {retain}: "
            f"set --pool-size to {2 * retain} at least, or --retain lower"
        )
    return pool_size, retain


def _named(roots: list[tuple[str, str]], optional: bool) -> tuple[tuple[str, str], ...]:
    """Several directories without names are called by their last part."""
    if not roots and optional:
        return ()
    if not roots:
        raise _wrong("say which directory to serve: zcserver serve DIR")
    if len(roots) == 1:
        return tuple(roots)
    named = [(name or os.path.basename(os.path.realpath(directory)), directory) for name, directory in roots]
    names = [name for name, _ in named]
    for name in names:
        if not name or names.count(name) > 1:
            raise _wrong(f"several directories are called {name!r}: name them, as NAME=DIR")
    return tuple(named)


def _wrong(line: str) -> CommandError:
    return CommandError(printable(line), ExitCode.USAGE)


def url_host(host: str, hostname: str) -> str:
    """A listening address as a client may name it."""
    if host == EVERYWHERE:
        return hostname
    return f"[{host}]" if ":" in host else host
