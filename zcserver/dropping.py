"""What finalizers say. Not compiled: compiled ones that the garbage collector runs let their errors out."""

import sys
import warnings


def warn_of_dropped(source: object, words: str) -> None:
    """A ResourceWarning; if a filter makes it an error, that is printed, as errors in finalizers are."""
    finalizer = sys._getframe(1).f_code.co_name == "__del__"  # (compiled ones have no frame)
    try:
        warnings.warn(words, ResourceWarning, stacklevel=3 if finalizer else 2, source=source)
    except ResourceWarning as error:
        _Unraisable(error)


class _Unraisable:
    """Raises in a finalizer of its own, where the interpreter prints what nobody can catch."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error
