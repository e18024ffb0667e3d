"""Builds the floor, beside its source; only benchmarks need it."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

__all__ = ["load"]

_HERE = Path(__file__).resolve().parent


def load() -> ModuleType:
    """Return the module `_floor`, compiled now if its source is newer."""
    found = _find()
    if found is None:
        _compile()
        found = _find()
    assert found is not None, "the compiler left no module"
    spec = importlib.util.spec_from_file_location("_floor", found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _find() -> Path | None:
    source = (_HERE / "_floor.pyx").stat().st_mtime
    for path in _HERE.glob(f"_floor.{sys.implementation.cache_tag}-*.so"):
        if path.stat().st_mtime > source:
            return path
    return None


def _compile() -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    extension = Extension("_floor", [str(_HERE / "_floor.pyx")], extra_compile_args=["-O3"])
    with tempfile.TemporaryDirectory() as scratch:
        modules = cythonize([extension], build_dir=scratch, quiet=True)
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = str(_HERE)
        command.build_temp = scratch
        command.ensure_finalized()
        command.run()
