"""The served directories: a single one at ``/``, or several by name in a virtual directory."""

from collections.abc import Sequence

from zcserver.errors import MisuseError, StreamResetError
from zcserver.file_protocol import escape
from zcserver_protocol.errors import ErrorCode

from .paths import Root, components
from .refusals import missing, shown


class Roots:
    """One unnamed root, or any number of named ones. Raises MisuseError for a mixture or a name twice."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._by_name = {root.name: root for root in roots}
        if not roots or len(self._by_name) != len(roots) or (len(roots) > 1 and b"" in self._by_name):
            raise MisuseError("serve one directory, or several under a name of its own each")

    def in_order(self) -> list[Root]:
        """By the bytes of their names, as a listing shows them."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def is_top(self, path: str) -> bool:
        """Whether ``path`` (as it came over the wire) is the virtual directory."""
        return b"" not in self._by_name and not components(path)

    def find(self, path: str, new: bool = False) -> Root:
        """The root that ``path`` leads into; StreamResetError when there is none of that name.

        ``new``: something is to be made there.
        """
        only = self._by_name.get(b"")
        if only is not None:
            return only
        parts = components(path)
        if not parts:
            reason = f"{shown(path or '/')} only holds the served directories: name one of them"
            raise StreamResetError(ErrorCode.FORBIDDEN, reason)
        root = self._by_name.get(parts[0])
        if root is None:
            raise self._outside(path) if new else missing(path)
        return root

    def _outside(self, path: str) -> StreamResetError:
        names = shown(", ".join(f"/{escape(root.name)}" for root in self.in_order()))
        reason = f"{shown(path)} is in none of the served directories: name one of them, {names}"
        return StreamResetError(ErrorCode.FORBIDDEN, reason)
