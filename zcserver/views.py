"""Memory of whatever kind, as bytes."""

import mmap
from typing import Any

from .errors import MisuseError


def as_bytes(data: Any) -> memoryview:
    """The memory of an object with the buffer protocol. MisuseError without it, or for gaps in it."""
    try:
        view = memoryview(data)
    except (TypeError, ValueError) as error:  # (ValueError: numpy's dates, for one)
        raise MisuseError(
            f"cannot use {type(data).__name__} as memory ({error}): give a pool buffer, bytes, or an object "
            f"with the buffer protocol"
        ) from None
    if not view.c_contiguous:
        raise MisuseError(
            "this memory is not C-contiguous; make a contiguous copy first, e.g. by "
            "numpy.ascontiguousarray(array)"
        )
    if not view.nbytes:
        return memoryview(b"")
    return view.cast("B") if view.format != "B" or view.ndim != 1 else view


def is_mapped(data: Any) -> bool:
    """Whether the memory is a file mapping, perhaps below slices and arrays."""
    seen = 0
    while data is not None and seen < 16:
        if isinstance(data, mmap.mmap):
            return True
        data = data.obj if isinstance(data, memoryview) else getattr(data, "base", None)
        seen += 1
    return False
