"""Render, build, test and install the conda package without any conda channel.

Run by ``make conda``. Four steps, each of which must show what it promises:

1. recipe.yaml parses, renders once a Python, agrees with pyproject.toml, and
   a misspelt key in it is refused;
2. a channel of local files is made of this Python, this compiler and the
   packages that pip installs, under the names that conda-forge gives them;
3. recipe.yaml is built against this channel alone, and its tests pass in
   environments of their own;
4. the package is solved for and installed from that channel into a fresh
   prefix, where a frame makes the round trip.

Everything lies under ``conda-bld/offline`` and is made anew in each run. Only
pip may reach for the network, as its own configuration says.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

try:
    import rattler
    import rattler_build
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError as missing:
    sys.exit(f"{missing}\n  Install the tools first: pip install -e '.[conda]'")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "conda-bld" / "offline"
CHANNEL = WORK / "channel"
LOG = WORK / "rattler-build.log"

PYTHON_VERSION = sysconfig.get_python_version()
CONDA_NAMES = {"msgpack": "msgpack-python"}  # where conda-forge's differ from PyPI's
# Beside the standard library proper: other packages, tests, what draws windows.
LEFT_OUT = (
    *("site-packages", "dist-packages", "EXTERNALLY-MANAGED", "__pycache__", "*.a"),
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"),
)


class StepFailed(Exception):
    """A step did not show what it promises; the message says what and where to look."""


def main() -> int:
    """Run the four steps; return the exit code."""
    started = time.monotonic()
    if WORK.exists():
        shutil.rmtree(WORK)
    CHANNEL.mkdir(parents=True)
    # A cache of our own: each run makes other packages under the same names.
    os.environ["RATTLER_CACHE_DIR"] = str(WORK / "cache")
    try:
        with step("1 render the recipe"):
            variant = render_recipe()
        with step("2 make a channel of local files"):
            make_channel(variant)
        with step("3 build the package and test it"):
            package = build_package(variant)
            test_package(package)
        with step("4 install it into a fresh prefix"):
            asyncio.run(install_package(package))
    except StepFailed as failure:
        print(f"FAILED: {failure}")
        return 1
    except Exception:  # the exit below would swallow it
        print(f"FAILED: {traceback.format_exc()}")
        return 1
    print(f"conda package ok, {time.monotonic() - started:.1f} s: {package.path.relative_to(ROOT)}")
    return 0


# Step 1: the recipe


def render_recipe() -> rattler_build.RenderedVariant:
    """Render for every Python of variants.yaml and return this Python's variant."""
    recipe = rattler_build.Stage0Recipe.from_file(HERE / "recipe.yaml")
    pins = rattler_build.VariantConfig.from_file(HERE / "variants.yaml")
    variants = recipe.render(pins)
    for variant in variants:
        say(f"python {variant.variant['python']}: build {variant.recipe.build.string}")
    builds = {str(variant.recipe.build.string) for variant in variants}
    check(len(builds) == len(pins["python"]), f"{pins['python']} give only the builds {builds}")
    check_cross_build(recipe, pins)
    check_bad_key_is_refused()
    check_agreement_with_pyproject(variants[0])
    ours = [v for v in variants if v.variant["python"].startswith(f"{PYTHON_VERSION}.")]
    check(bool(ours), f"no Python {PYTHON_VERSION} in variants.yaml: run another, or add it there")
    return ours[0]


def check_cross_build(
    recipe: rattler_build.Stage0Recipe, pins: rattler_build.VariantConfig
) -> None:
    """Render for ARM on an x86 machine, as conda-forge does."""
    machines = rattler_build.PlatformConfig(
        target_platform="linux-aarch64", build_platform="linux-64", host_platform="linux-aarch64"
    )
    needed = build_requirements(recipe.render(pins, rattler_build.RenderConfig(machines))[0])
    check("cross-python_linux-aarch64" in needed, f"a cross build would need only {needed}")
    say(f"for linux-aarch64 on linux-64 it needs {', '.join(needed)}")


def check_bad_key_is_refused() -> None:
    """Misspell one key: a parser that takes anything would prove nothing above."""
    text = (HERE / "recipe.yaml").read_text()
    misspelt = text.replace("\nrequirements:\n", "\nrequirments:\n", 1)
    check(misspelt != text, "recipe.yaml has no top-level 'requirements:' to misspell")
    try:
        rattler_build.Stage0Recipe.from_yaml(misspelt, recipe_dir=WORK / "misspelt")
    except rattler_build.RattlerBuildError as refusal:
        check("requirments" in str(refusal), f"refused for another reason: {refusal}")
        say(f"a misspelt key is refused: {str(refusal).splitlines()[0]}")
    else:
        raise StepFailed("the key 'requirments' was accepted")


def check_agreement_with_pyproject(variant: rattler_build.RenderedVariant) -> None:
    """Compare the version and the dependencies, which stand in both files."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["site"], *extras["hdf5"]]
    wanted = {conda_spec(Requirement(line)) for line in lines}
    specs = variant.recipe.to_dict()["requirements"]
    stated = {conda_spec(Requirement(line)) for line in specs["run"] + specs["run_constraints"]}
    stated.remove("python")
    version = variant.recipe.package.version
    check(version == project["version"], f"recipe {version}, pyproject {project['version']}")
    check(stated == wanted, f"recipe and pyproject differ in {sorted(stated ^ wanted)}")
    say(f"version and {len(wanted)} dependencies as in pyproject.toml")


# Step 2: the channel


def make_channel(variant: rattler_build.RenderedVariant) -> None:
    """Fill CHANNEL with all that building, testing and running the package takes."""
    build_stand_ins(variant)
    names = [package_distribution(dist) for dist in install_wheels()]
    say(f"{len(names)} packages from pip: {', '.join(sorted(names))}")
    asyncio.run(rattler.index.index_fs(CHANNEL))


def build_stand_ins(variant: rattler_build.RenderedVariant) -> None:
    """Build stand-ins.yaml, under the names that the rendered recipe asks for."""
    compiler, stdlib = build_requirements(variant)
    stdlib_name, stdlib_version = stdlib.removesuffix(".*").split()
    cc = shutil.which("cc") or shutil.which("gcc") or ""
    check(bool(cc), "no C compiler: install gcc")
    config = rattler_build.RenderConfig(
        extra_context={
            "python_version": platform.python_version(),
            "python_minor": PYTHON_VERSION,
            "python_build": variant.variant["python"].partition("*_")[2],
            "abi_tag": f"cp{PYTHON_VERSION.replace('.', '')}",
            "base_prefix": sys.base_prefix,
            "tree": str(stage_python(WORK / "python")),
            "compiler_name": compiler,
            "stdlib_name": stdlib_name,
            "stdlib_version": stdlib_version,
            "cc": cc,
        }
    )
    recipe = rattler_build.Stage0Recipe.from_file(HERE / "stand-ins.yaml")
    for output in recipe.render(rattler_build.VariantConfig(), config):
        result = run_build(output)
        say(f"stand-in {result.name} {result.version}")


def stage_python(tree: Path) -> Path:
    """Copy this interpreter, its standard library and its headers to `tree`."""
    folder = f"python{PYTHON_VERSION}"
    stdlib, ignore = sysconfig.get_path("stdlib"), shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(stdlib, tree / "lib" / folder, ignore=ignore, ignore_dangling_symlinks=True)
    shutil.copytree(sysconfig.get_path("include"), tree / "include" / folder)
    libdir, soname, linked = sysconfig.get_config_vars("LIBDIR", "INSTSONAME", "LDLIBRARY")
    if not soname.endswith(".a") and Path(libdir, soname).exists():
        shutil.copy2(Path(libdir, soname), tree / "lib")
        (tree / "lib" / linked).symlink_to(soname)
    if "posix_local" in sysconfig.get_scheme_names():
        # Debian's Python installs to local/lib/python3.x/dist-packages, and looks only there.
        (tree / "local").symlink_to(".")
        (tree / "lib" / folder / "dist-packages").symlink_to("site-packages")
    (tree / "bin").mkdir()
    binary = tree / "bin" / folder
    binary.write_bytes(relocated(Path(sys.executable).resolve().read_bytes()))
    binary.chmod(0o755)
    for name in ("python3", "python"):
        (tree / "bin" / name).symlink_to(folder)
    return tree


def relocated(binary: bytes) -> bytes:
    """Let an interpreter look for libpython beside itself, not where it was built.

    The number of bytes stays the same, because nothing in the file may move.
    """
    old = os.fsencode(sysconfig.get_config_var("LIBDIR")) + b"\0"
    new = b"$ORIGIN/../lib\0"
    return binary.replace(old, new.ljust(len(old), b"\0")) if len(new) <= len(old) else binary


def install_wheels() -> list[metadata.Distribution]:
    """Let pip collect what building and running take, and return what it found."""
    target = WORK / "wheels"
    project, build = pyproject()["project"], pyproject()["build-system"]
    extra = project["optional-dependencies"]["site"]  # which the recipe always brings
    needed = [*project["dependencies"], *extra, *build["requires"]]
    pip = [sys.executable, "-m", "pip", "install", "--no-compile", "--target", str(target)]
    run([*pip, *needed, "pip"])
    return list(metadata.distributions(path=[str(target)]))


def package_distribution(dist: metadata.Distribution) -> str:
    """Make a conda package of an installed distribution and return its name.

    Its command-line scripts are left out: they name the interpreter that pip
    ran under, and nothing here calls them.
    """
    name = conda_name(dist.metadata["Name"])
    site_packages = Path("lib", f"python{PYTHON_VERSION}", "site-packages")
    files = [
        rattler_build.FileEntry.from_paths(str(dist.locate_file(file)), site_packages / file)
        for file in dist.files or []
        if ".." not in file.parts
    ]
    check(bool(files), f"{name}: its RECORD names no files")
    needed = [Requirement(line) for line in dist.requires or []]
    rattler_build.assemble_package(
        name,
        dist.version,
        str(rattler.Subdir.current()),
        f"py{PYTHON_VERSION.replace('.', '')}_0",
        CHANNEL / str(rattler.Subdir.current()),
        files=files,
        depends=[
            f"python {PYTHON_VERSION}.*",
            *(conda_spec(r) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})),
        ],
        compression_level=1,
    )
    return name


# Step 3: the package


def build_package(variant: rattler_build.RenderedVariant) -> rattler_build.Package:
    """Build the rendered recipe against CHANNEL, and into it."""
    result = run_build(variant)
    package = rattler_build.Package.from_file(result.packages[0])
    abi = [spec for spec in package.depends if spec.startswith("python_abi ")]
    check(bool(abi), f"the package is not bound to a Python: {package.depends}")
    say(f"{package.filename} in {result.build_time:.1f} s, bound to {abi[0]}")
    return package


def test_package(package: rattler_build.Package) -> None:
    """Run each test of the recipe in an environment of its own."""
    check(package.test_count > 0, "the package carries no tests")
    for test in package.tests:
        began = time.monotonic()
        with logged() as callback:
            result = package.run_test(
                test.index, channel=[CHANNEL.as_uri()], progress_callback=callback
            )
        name = f"test {test.index + 1} of {package.test_count} ({claim(test)})"
        check(result.success, f"{name}:\n" + "\n".join(result.output[-40:]))
        say(f"{name}: passed in {time.monotonic() - began:.1f} s")


def claim(test: rattler_build.PackageTestType) -> str:
    """Return in a few words what a test of the recipe does."""
    if isinstance(test, rattler_build.PythonTest):
        return f"import {', '.join(test.imports)}{'; pip check' if test.pip_check else ''}"
    script = test.to_dict()["script"]["content"]
    return shorten(script if isinstance(script, str) else script[-1], 50)


# Step 4: the installed package


async def install_package(package: rattler_build.Package) -> None:
    """Solve for the package, install it, and send a frame through it."""
    prefix = WORK / "prefix"
    began = time.monotonic()
    records = await rattler.solve(
        [rattler.Channel(CHANNEL.as_uri())],
        [f"{package.name} =={package.version}"],
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    foreign = [record.url for record in records if not record.url.startswith("file://")]
    check(not foreign, f"these did not come from the local channel: {foreign}")
    await rattler.install(records, prefix, cache_dir=WORK / "cache" / "pkgs", show_progress=False)
    say(f"{len(records)} packages from file:// in {time.monotonic() - began:.1f} s")
    run_in(prefix, "pyhub", "--help")
    run_in(prefix, "python", str(HERE / "roundtrip.py"))


def run_in(prefix: Path, program: str, argument: str) -> None:
    """Run a program of the prefix that sees nothing of this checkout's environment."""
    environment = {"PATH": f"{prefix / 'bin'}:/usr/bin:/bin"}
    output = run([str(prefix / "bin" / program), argument], cwd=prefix, env=environment)
    check(bool(output), f"{program} {argument} printed nothing")
    say(f"{program} {Path(argument).name}: {output.splitlines()[0]}")


# What several steps use


def run_build(variant: rattler_build.RenderedVariant) -> rattler_build.BuildResult:
    """Build one rendered recipe into CHANNEL, its log into LOG."""
    try:
        with logged() as callback:
            return variant.run_build(
                output_dir=CHANNEL,
                channels=[CHANNEL.as_uri()],
                package_format="conda:1",
                progress_callback=callback,
            )
    except rattler_build.RattlerBuildError as error:
        lines = LOG.read_text().splitlines()[-40:]
        raise StepFailed(
            "\n".join([*lines, str(error), f"all of it: {LOG.relative_to(ROOT)}"])
        ) from error


@contextmanager
def logged() -> Iterator[SimpleNamespace]:
    """Write what rattler-build tells to LOG."""
    with LOG.open("a") as log:
        yield SimpleNamespace(on_log=lambda event: log.write(f"{event.level}: {event.message}\n"))


def build_requirements(variant: rattler_build.RenderedVariant) -> list[str]:
    """Return what a rendered recipe needs to build: compiler and C library first."""
    return [str(spec) for spec in variant.recipe.to_dict()["requirements"]["build"]]


def run(command: list[str], **options: Any) -> str:
    """Run a command and return what it printed; a failing command ends the step."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )
    output: str = done.stdout + done.stderr
    check(done.returncode == 0, f"{' '.join(command)} exits with {done.returncode}:\n{output}")
    return output


def pyproject() -> dict[str, Any]:
    """Return the tables of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def conda_name(name: str) -> str:
    """Return what conda-forge calls a distribution of PyPI."""
    name = canonicalize_name(name)
    return CONDA_NAMES.get(name, name)


def conda_spec(requirement: Requirement) -> str:
    """Return pip's requirement as conda writes it, without its marker."""
    return f"{conda_name(requirement.name)} {requirement.specifier}".strip()


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title of a step and how long it took."""
    print(f"== {title}", flush=True)
    began = time.monotonic()
    yield
    say(f"{time.monotonic() - began:.1f} s")


def say(line: str) -> None:
    """Print one thing that the current step has shown."""
    print(f"   {line}", flush=True)


def check(condition: bool, message: str) -> None:
    """End the step unless the condition holds."""
    if not condition:
        raise StepFailed(message)


if __name__ == "__main__":
    code = main()
    # py-rattler once in seven runs aborts the interpreter while it shuts down,
    # after all work is done (0.28, seen in trials). Nothing is left to clean up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
