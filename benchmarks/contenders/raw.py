"""The same transfer in C: the program beside this package, compiled when it is first needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.side import read_arguments

SOURCE = Path(__file__).parent.parent / "raw.c"
PROGRAM = SOURCE.parent / "build" / "raw"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def unavailable() -> str | None:
    return None if compiler() else "no C compiler (cc, gcc or $CC) is here"


def compiled() -> Path:
    """The program, compiled anew if its source is younger. CalledProcessError if it does not compile."""
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return PROGRAM
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler is here")
    PROGRAM.parent.mkdir(exist_ok=True)
    fresh = PROGRAM.with_suffix(f".{os.getpid()}")
    flags = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
    subprocess.run([command, *flags, str(SOURCE), "-o", str(fresh)], check=True)
    fresh.replace(PROGRAM)  # two runs that compile at once never see half a program
    return PROGRAM


def become(lane: str) -> None:
    """Replace this process by the C program, `lane` being "splice" or "copy"."""
    role, run = read_arguments(f"raw-{lane}")
    program = str(compiled())
    os.execv(program, [program, lane, role, *map(str, run)])
