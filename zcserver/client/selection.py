"""Which files of a tree are meant."""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from zcserver.errors import MisuseError

_BELOW: Final = "(?:/.*)?"


class Selection:
    """Patterns over paths relative to the top of a tree.

    ``*``, ``?`` and ``[…]`` stand for characters of one name, ``**`` for any number of folders. A pattern
    without a slash is for names in any folder, one with a slash for the whole path. What matches one of
    ``exclude`` is left out, a folder with all that is in it; if there is any ``include``, so are the files
    that match none of them.
    """

    def __init__(self, include: Collection[str] = (), exclude: Collection[str] = ()) -> None:
        if isinstance(include, (str, bytes)) or isinstance(exclude, (str, bytes)):
            raise MisuseError("include and exclude are lists of patterns: ['*.log'], not '*.log'")
        for pattern in (*include, *exclude):
            if not isinstance(pattern, str):
                raise MisuseError(f"{pattern!r} is no pattern: include and exclude are lists of str")
        self.all_included = not include
        self._include = [_compiled(pattern) for pattern in include]
        self._exclude = [_compiled(pattern, _BELOW) for pattern in exclude]

    def includes(self, path: str) -> bool:
        """Whether a file is meant, as far as ``include`` goes."""
        return self.all_included or any(pattern.fullmatch(path) for pattern in self._include)

    def excludes(self, path: str) -> bool:
        """Whether a file or folder is left out, for itself or with a folder that it is in."""
        return any(pattern.fullmatch(path) for pattern in self._exclude)


@lru_cache(maxsize=256)
def _compiled(pattern: str, behind: str = "") -> re.Pattern[str]:
    """The expression for a whole path, and what may come behind."""
    parts = pattern.strip("/").split("/")
    if "/" not in pattern.rstrip("/"):
        parts.insert(0, "**")
    runs = [""]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            runs.append(".*" if last else "")
        else:
            runs[-1] += _of_one_name(part) + ("" if last else "/")
    try:
        return re.compile(_with_gaps(runs, "(?:[^/]+/)*?") + behind, re.DOTALL)
    except re.error as error:
        raise MisuseError(f"{pattern!r} is no usable pattern: {error}") from None


def _of_one_name(part: str) -> str:
    """The expression for one part of a pattern; its wildcards do not match a slash."""
    runs = [""]
    position = 0
    while position < len(part):
        character = part[position]
        position += 1
        closing = part.find("]", position + 1) if character == "[" else -1
        if character == "*":
            runs.append("")
        elif character == "?":
            runs[-1] += "[^/]"
        elif closing > 0:
            body = part[position:closing].replace("\\", r"\\").replace("[", r"\[")
            negated = body.startswith(("!", "^"))
            runs[-1] += f"(?!/)[{'^' + body[1:] if negated else body}]"
            position = closing + 1
        else:
            runs[-1] += re.escape(character)
    return _with_gaps(runs, "[^/]*?")


def _with_gaps(runs: list[str], gap: str) -> str:
    """The expression for all runs in their order, with a ``gap`` (which takes as little as it can) between.

    A run matches characters, or names, of a number that is fixed. So where one fits first is as good a place
    as any, but for the last one, and is not given up again: else the time would grow with a power of the
    path's length.
    """
    first, *others = runs
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>{gap}{run})" for run in middle) + gap + last
