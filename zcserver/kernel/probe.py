"""What this machine can do, found out by trying each thing once at start.

Version numbers tell little: a sandbox may forbid ``vmsplice`` (Podman: ``EPERM``, gVisor: ``ENOSYS``), and a
kernel may turn it into a copy. So one page goes through a pipe: 'A' is written, spliced, overwritten by
'B', and read. 'B' comes out if the page went by reference, 'A' if it was copied.
"""

import mmap
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from zcserver.kernel.calls import DEFAULT, PAGE, IoVec, Kernel, address_of
from zcserver.kernel.pipe import WORTHWHILE_SLOTS, Pipe

VmspliceFinding = Literal["reference", "copies", "forbidden"]
HugePages = Literal["always", "madvise", "never"]

# bbr, the default of some systems, paces: on loopback that halves the throughput at four times the CPU.
UNPACED: Final = ("cubic", "reno")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What :func:`probe` found. Sizes are bytes; ``None`` means unknown or not available."""

    vmsplice: VmspliceFinding
    vmsplice_reason: str
    file_splice: bool
    file_splice_reason: str
    pipe_size: int
    """Of a new pipe after asking for 1 MiB; 0 if there was no pipe to be had."""
    pipe_slots: int
    pipe_user_soft_limit: int | None
    """Bytes of pipes an unprivileged user may have before new ones shrink to 2 slots; 0: no limit."""
    huge_pages: HugePages
    congestion_default: str | None
    congestion_unpaced: str | None
    """A congestion control without pacing that this process may choose, for peers on the same host."""
    kernel_release: str
    openat2: bool
    nowait_reads: bool
    """``RWF_NOWAIT`` works on the file system that holds this package. Not so everywhere: tmpfs cannot."""
    lanes: tuple[str, ...]
    """The lanes that work, best first, out of "vmsplice", "file" and "copy"."""
    reasons: Mapping[str, str] = field(hash=False)
    """For each of the three lanes, why it is or is not among ``lanes``."""


def probe(kernel: Kernel = DEFAULT) -> Capabilities:
    """Try everything once and report. Takes about a millisecond; a forbidden call is a finding, no error."""
    vmsplice, vmsplice_reason = _try_vmsplice(kernel)
    file_splice, file_splice_reason = _try_file_splice(kernel)
    pipe_size, pipe_slots = _try_pipe(kernel)
    default, unpaced = _try_congestion(kernel)
    large_enough = pipe_slots >= WORTHWHILE_SLOTS
    small = f"pipes have only {pipe_slots} slots: the user's pipe quota is used up"
    findings = {
        "vmsplice": (vmsplice == "reference", vmsplice_reason),
        "file": (file_splice, file_splice_reason),
    }
    lanes = [lane for lane, (works, _) in findings.items() if works and large_enough]
    reasons = {
        lane: small if works and not large_enough else reason for lane, (works, reason) in findings.items()
    }
    return Capabilities(
        vmsplice=vmsplice,
        vmsplice_reason=vmsplice_reason,
        file_splice=file_splice,
        file_splice_reason=file_splice_reason,
        pipe_size=pipe_size,
        pipe_slots=pipe_slots,
        pipe_user_soft_limit=_pipe_user_soft_limit(),
        huge_pages=_huge_pages(),
        congestion_default=default,
        congestion_unpaced=unpaced,
        kernel_release=os.uname().release,
        openat2=_try_openat2(kernel),
        nowait_reads=_try_nowait_reads(kernel),
        lanes=(*lanes, "copy"),
        reasons={**reasons, "copy": "always works"},
    )


def _try_vmsplice(kernel: Kernel) -> tuple[VmspliceFinding, str]:
    iovec = IoVec(1)
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0:1] = b"A"
        iovec.fill([address_of(page), 1])
        try:
            pipe = Pipe(kernel, PAGE)
        except OSError as error:
            return "forbidden", f"no pipe: {error}"
        try:
            pipe.fill_from_memory(iovec.cdata, 1)
            page[0:1] = b"B"
            read = os.read(pipe.read_fd, 1)
        except OSError as error:
            return "forbidden", str(error)
        finally:
            pipe.close()
    if read == b"B":
        return "reference", "pages go through a pipe by reference"
    return "copies", "this kernel's vmsplice copies; sending from memory gains nothing by it"


def _try_file_splice(kernel: Kernel) -> tuple[bool, str]:
    """Page-cache pages travel without vmsplice. A memfd is a file on every system."""
    try:
        file = os.memfd_create("zcserver-probe", os.MFD_CLOEXEC)
    except OSError as error:
        return False, f"memfd_create: {error}"
    try:
        os.write(file, b"A")
        pipe = Pipe(kernel, PAGE)
        try:
            pipe.fill_from_file(file, 0, 1)
            works = os.read(pipe.read_fd, 1) == b"A"
        finally:
            pipe.close()
    except OSError as error:
        return False, f"splice from a file: {error}"
    finally:
        os.close(file)
    return works, "pages of files go through a pipe by reference" if works else "splice from a file failed"


def _try_pipe(kernel: Kernel) -> tuple[int, int]:
    try:
        pipe = Pipe(kernel)
    except OSError:
        return 0, 0
    pipe.close()
    return pipe.size, pipe.slots


def _try_congestion(kernel: Kernel) -> tuple[str | None, str | None]:
    """The default of a new socket, and the first unpaced one that may be set (the default is preferred)."""
    try:
        with socket.socket() as sock:
            default = kernel.get_congestion(sock)
            if default in UNPACED:
                return default, default
            for name in UNPACED:
                try:
                    kernel.set_congestion(sock, name)
                except OSError:  # EPERM: not allowed to users; ENOENT: not in this kernel
                    continue
                return default, name
    except OSError:
        return None, None
    return default, None


def _try_openat2(kernel: Kernel) -> bool:
    try:
        os.close(kernel.openat2(-1, b"/", os.O_PATH, 0, 0))
    except OSError:
        return False
    return True


def _try_nowait_reads(kernel: Kernel) -> bool:
    try:
        fd = os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # inside a zip archive
        return False
    try:
        return kernel.page_cached(fd, 0) is not None
    except OSError:
        return False
    finally:
        os.close(fd)


def _pipe_user_soft_limit() -> int | None:
    try:
        return int(Path("/proc/sys/fs/pipe-user-pages-soft").read_text()) * PAGE
    except (OSError, ValueError):
        return None


def _huge_pages() -> HugePages:
    """What /sys says in brackets. A kernel without huge pages has no such file."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "never"
    if "[always]" in text:
        return "always"
    return "madvise" if "[madvise]" in text else "never"
