"""Which files of a tree are meant."""

import re
from collections.abc import Collection
from functools import lru_cache

from zcserver.errors import MisuseError


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
        self._exclude = [_compiled(pattern) for pattern in exclude]

    def includes(self, path: str) -> bool:
        """Whether a file is meant, as far as ``include`` goes."""
        return self.all_included or any(pattern.fullmatch(path) for pattern in self._include)

    def excludes(self, path: str) -> bool:
        """Whether a file, or a folder with its content, is left out. Does not look at its parents."""
        return any(pattern.fullmatch(path) for pattern in self._exclude)

    def excludes_below(self, path: str) -> bool:
        """Whether a path or one of its parents is left out."""
        if not self._exclude:
            return False
        parts = path.split("/")
        return any(self.excludes("/".join(parts[:count])) for count in range(1, len(parts) + 1))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    anchored = "/" in pattern.rstrip("/")
    parts = pattern.strip("/").split("/")
    if not anchored:
        parts.insert(0, "**")
    expression = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            expression += ".*" if last else "(?:[^/]+/)*"
        else:
            expression += _of_one_name(part) + ("" if last else "/")
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise MisuseError(f"{pattern!r} is no usable pattern: {error}") from None


def _of_one_name(part: str) -> str:
    """The expression for one part of a pattern; its wildcards do not match a slash."""
    expression = ""
    position = 0
    while position < len(part):
        character = part[position]
        position += 1
        closing = part.find("]", position + 1) if character == "[" else -1
        if character == "*":
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif closing > 0:
            body = part[position:closing].replace("\\", r"\\").replace("[", r"\[")
            negated = body.startswith(("!", "^"))
            expression += f"(?!/)[{'^' + body[1:] if negated else body}]"
            position = closing + 1
        else:
            expression += re.escape(character)
    return expression
