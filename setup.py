"""Builds the native modules; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import shutil
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HEADERS = sorted(glob("include/pyhub/*.h"))
NATIVE = (
    "_core", "_codec", "_dlpack", "_datablock", "_reading", "_readers", "_writing",
    "_deadlines", "_handover", "_ears", "hub._raw_socket",
)  # fmt: skip
DECLARATIONS = sorted(glob("pyhub/*.pxd"))
# Tests build the package with a promise broken on purpose, to see them fail.
SABOTAGE = [(name, None) for name in os.environ.get("PYHUB_SABOTAGE", "").split()]


class BuildWithHeaders(build_py):
    """Ships include/pyhub beside the package, where pyhub.get_include() looks."""

    def run(self) -> None:
        """Copy the headers after the modules."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "pyhub", "include", "pyhub")
            target.mkdir(parents=True, exist_ok=True)
            for header in HEADERS:
                shutil.copy2(header, target)


def native(name: str) -> Extension:
    """Describe one native module of the package."""
    return Extension(
        f"pyhub.{name}",
        sources=[f"pyhub/{name.replace('.', '/')}.pyx"],
        depends=[*HEADERS, *DECLARATIONS],
        include_dirs=["include"],
        define_macros=[("_GNU_SOURCE", None), *SABOTAGE],
        extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-Wno-unused-parameter"],
        libraries=["pthread"],
    )


setup(
    ext_modules=[native(name) for name in NATIVE],
    cmdclass={"build_py": BuildWithHeaders},
)
