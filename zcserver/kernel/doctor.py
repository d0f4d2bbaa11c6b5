"""The probe's findings in words, and as JSON. Printing is the command line's job."""

import dataclasses
import json
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Final

from zcserver.kernel.calls import PAGE
from zcserver.kernel.probe import Capabilities

Row = tuple[str, str, str]

_VMSPLICE: Final = {
    "reference": "memory is sent without copying",
    "copies": "memory is sent by copying",
    "forbidden": "memory is sent by copying; allow vmsplice in the sandbox's seccomp profile to change that",
}
_HUGE_PAGES: Final = {
    "always": "the pool gets huge pages",
    "madvise": "the pool asks for huge pages and gets them",
    "never": "the pool has 4 KiB pages: about 1.5 times the CPU per byte; set it to madvise to change that",
}

_OPENAT2: Final = {
    True: "the kernel itself keeps paths inside the served folder",
    False: "paths are checked part by part; a seccomp profile or a kernel before 5.6 forbids openat2",
}
_COMPILED: Final = {
    True: "by mypyc, when zcserver was installed",
    False: "short messages cost more CPU than compiled; the README says how to compile",
}
_CACHE_PROBES: Final = {
    True: "files in the page cache are sent without a thread",
    False: "file reads go through a thread, at least on a file system like that of this package",
}


def report(capabilities: Capabilities) -> list[Row]:
    """Rows of (label, value, meaning), the most important first."""
    c = capabilities
    return [
        ("lanes", ", ".join(c.lanes), "how bytes are sent, best first"),
        ("vmsplice", c.vmsplice, f"{_VMSPLICE[c.vmsplice]} ({c.vmsplice_reason})"),
        ("file splice", _yes(c.file_splice), c.file_splice_reason),
        _pipe(c),
        _pipe_limit(c.pipe_user_soft_limit),
        ("huge pages", c.huge_pages, _HUGE_PAGES[c.huge_pages]),
        _congestion(c),
        ("openat2", _yes(c.openat2), _OPENAT2[c.openat2]),
        ("cache probes", _yes(c.nowait_reads), _CACHE_PROBES[c.nowait_reads]),
        ("hot modules", "compiled" if compiled() else "interpreted", _COMPILED[compiled()]),
        ("kernel", c.kernel_release, "as it names itself"),
    ]


def to_json(capabilities: Capabilities) -> str:
    """All findings as one JSON object; the keys are the fields of :class:`Capabilities`, and ``compiled``."""
    return json.dumps(dataclasses.asdict(capabilities) | {"compiled": compiled()}, indent=2)


def compiled() -> bool:
    """Whether the modules that every message passes through are (see hatch_build.py)."""
    spec = find_spec("zcserver.engine")
    return spec is not None and str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _pipe(c: Capabilities) -> Row:
    if c.pipe_size >= 1 << 20:
        meaning = "large enough for a whole frame"
    elif "vmsplice" in c.lanes or "file" in c.lanes:
        meaning = "smaller than a frame: more system calls per byte"
    else:
        meaning = "too small to be of use: close other pipes of this user, or raise pipe-user-pages-soft"
    return "pipe", f"{c.pipe_size // 1024} KiB, {c.pipe_slots} slots", meaning


def _pipe_limit(limit: int | None) -> Row:
    label = "pipe quota"
    if limit is None:
        return label, "unknown", "/proc/sys/fs/pipe-user-pages-soft cannot be read"
    if limit == 0:
        return label, "none", "a user may have any number of pipes"
    pipes = limit >> 20
    return label, f"{limit // PAGE} pages", f"about {pipes} pipes of 1 MiB per user in all; root is exempt"


def _congestion(c: Capabilities) -> Row:
    value = c.congestion_default or "unknown"
    if c.congestion_unpaced is None:
        return "congestion", value, "no unpaced one may be set: peers on this host get this one, bbr is slow"
    return "congestion", value, f"peers on this host get {c.congestion_unpaced}"
