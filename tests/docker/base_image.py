"""A base image without a registry: Debian by ``debootstrap``, under the name that the Dockerfile asks for.

It brings the wheels that the Dockerfile installs, and settings that make its pip look nowhere else.
"""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
_SUITE = "trixie"
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_PIP = "[global]\nno-index = true\nfind-links = /wheels\n"
_SECONDS = 600


def name() -> str:
    """What the Dockerfile builds on."""
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE))
    (base,) = bases
    return base


def make(directory: Path) -> Path:
    """The image's root file system below ``directory``, as it is when it has been made before."""
    made = directory / "root"
    if made.exists():
        return made
    root = directory / "unfinished"
    shutil.rmtree(root, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, root)
    (python,) = (root / "usr" / "bin").glob("python3.*[0-9]")
    _wheels(root / "wheels", python.name.removeprefix("python"))
    (root / "etc" / "pip.conf").write_text(_PIP)
    return root.rename(made)


def _wheels(directory: Path, version: str) -> None:
    """What the project and its build need, for the image's Python rather than for this one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = settings["build-system"]["requires"] + settings["project"]["dependencies"]
    platforms = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in (17, 28)]
    wanted = ["--only-binary=:all:", f"--python-version={version}", *platforms]
    _run(sys.executable, "-m", "pip", "download", "--quiet", *wanted, "--dest", directory, *needed)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, timeout=_SECONDS, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
