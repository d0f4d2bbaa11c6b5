"""Compiles the modules that every message passes through, for those who ask for it (``make compiled``)."""

from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface):
    """By mypyc, from the very Python that otherwise is interpreted. pyproject.toml lists the ``modules``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # whoever edits modules wants to run them
        from mypyc.build import mypycify
        from setuptools import Distribution

        self._place = TemporaryDirectory(prefix="zcserver-compiled-")
        place = Path(self._place.name).resolve()
        modules = [
            f"{folder}/{name}.py" for folder, names in self.config["modules"].items() for name in names
        ]
        options = [
            "--config-file",
            "pyproject.toml",
            "--ignore-missing-imports",
            "--cache-dir",
            f"{place}/cache",
        ]
        with chdir(self.root):
            extensions = mypycify([*options, *modules], group_name="zcserver", target_dir=f"{place}/c")
            build = Distribution({"name": "zcserver", "ext_modules": extensions}).get_command_obj("build_ext")
            build.build_lib, build.build_temp = f"{place}/lib", f"{place}/objects"
            build.ensure_finalized()
            build.run()
        for library in Path(place, "lib").rglob("*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(place / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._place.cleanup()
