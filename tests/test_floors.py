"""Imports go down only: a table of the house's floors, and a walk over the syntax trees.

The house is drawn in the README. A module that the table does not know fails
the test: decide first on which floor it lives.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyhub"

# The longest prefix counts. The whole number is the floor; behind the point
# stand the rooms of one floor, in the order in which they may use each other.
FLOORS = {
    "pyhub._abi": 0.0,  # the C headers as Cython sees them
    "pyhub.errors": 1.0,
    "pyhub.names": 1.1,
    "pyhub.process": 1.1,
    "pyhub.awake": 1.1,
    "pyhub._deadlines": 1.1,
    "pyhub._handover": 1.2,
    "pyhub._ears": 1.3,
    "pyhub._core": 1.2,
    "pyhub._codec": 1.3,
    "pyhub._dlpack": 1.3,
    "pyhub._datablock": 1.3,
    "pyhub._writing": 1.4,
    "pyhub._reading": 1.4,
    "pyhub._readers": 1.5,
    "pyhub.layout": 2.0,
    "pyhub.codec": 2.1,
    "pyhub.datablock": 3.0,
    "pyhub.hub": 4.0,
    "pyhub.hub.broker": 4.1,  # neither side knows the other:
    "pyhub.hub.client": 4.1,  # they share messages, keys and the runtime directory
    "pyhub.hub.message_hub": 4.2,
    "pyhub.sources": 5.0,
    "pyhub.monitor": 5.1,
    "pyhub.sinks": 5.2,
    "pyhub": 6.0,  # the public names
    "pyhub.cli": 6.1,
    "pyhub.__main__": 6.2,
}

# Who may import a native module: its own column, and what it is listed for.
NATIVE = {
    "pyhub._abi": {
        "pyhub._core",
        "pyhub._codec",
        "pyhub._datablock",
        "pyhub._reading",
        "pyhub._readers",
        "pyhub._writing",
        "pyhub._deadlines",
        "pyhub._handover",
    },
    "pyhub._deadlines": {
        "pyhub._handover",
        "pyhub._ears",
        "pyhub.hub.client",
        "pyhub.hub.message_hub",
    },
    "pyhub._handover": {
        "pyhub._ears",
        "pyhub.hub.client",
    },
    "pyhub._ears": {
        "pyhub.hub.client",
    },
    "pyhub._core": {
        "pyhub._datablock",  # every native sibling: Segment
        "pyhub._reading",
        "pyhub._readers",
        "pyhub._writing",
        "pyhub.datablock",  # leases
        "pyhub.hub",  # leases
        "pyhub.monitor",  # leases, and removing what the dead left
    },
    "pyhub._codec": {"pyhub.codec"},
    "pyhub._dlpack": {"pyhub.datablock"},
    "pyhub._writing": {"pyhub.datablock"},
    "pyhub._reading": {
        "pyhub._readers",
        "pyhub.datablock",
        "pyhub.monitor.survey",  # looks at frames without becoming a reader
    },
    "pyhub._readers": {"pyhub.datablock"},
    "pyhub._datablock": {
        "pyhub._reading",  # the same column
        "pyhub._readers",
        "pyhub._writing",
        "pyhub.datablock",
        "pyhub.hub.client.notifications",  # a waiter is handed the block to watch
        "pyhub.monitor.survey",  # looks at headers without becoming a reader
        "pyhub.monitor.cleaning",  # repairs without becoming a producer
    },
}

# Who may import what does not belong everywhere.
WIRE = {"pyhub.hub", "pyhub.monitor", "pyhub.cli"}
OUTSIDE = {
    "zmq": WIRE,
    "msgspec": {"pyhub.hub"},
    "msgpack": {"pyhub.codec"},
    "rich": {"pyhub.monitor", "pyhub.cli"},
    "click": {"pyhub.cli"},
    "h5py": {"pyhub.sources", "pyhub.sinks"},
    "hdf5plugin": {"pyhub.sources", "pyhub.sinks"},
}
EXTRAS = {"h5py", "hdf5plugin", "yaml"}
FLOOR_1_MAY_NOT = {"zmq", "msgpack", "msgspec", "logging"}

_CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.*)|c?import\s+([\w.]+))")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for suffix in ("py", "pyx", "pxd") for path in sorted(PACKAGE.rglob(f"*.{suffix}"))]
MODULES = {name_of(path) for path in FILES}


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Name what `path` imports, and whether it does so on being imported itself."""
    if path.suffix == ".py":
        tree = ast.parse(path.read_text())
        inner = {
            node
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node not in inner) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                for alias in node.names:
                    yield resolve(str(node.module), alias.name), node not in inner
    else:
        for line in path.read_text().splitlines():
            if found := _CYTHON_IMPORT.match(line):
                module, names, alone = found.groups()
                if alone:
                    yield alone, True
                for name in re.findall(r"\w+", names or "") or ([""] if module else []):
                    yield resolve(module, name), True


def resolve(module: str, name: str) -> str:
    """Name the module that `from module import name` leads to."""
    whole = f"{module}.{name}"
    return whole if whole in MODULES else module


def is_in(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str:
    """Name the entry of the table that `module` lives in."""
    prefixes = [room for room in FLOORS if is_in(module, {room})]
    room = max(prefixes, key=len)
    # `pyhub` itself takes nobody in: a new module has to be given a floor.
    assert room != "pyhub" or module == "pyhub", f"{module} is on no floor: see FLOORS"
    return room


def is_allowed(importer: str, imported: str) -> bool:
    """Whether the import goes down, or stays in its room."""
    here, there = room_of(importer), room_of(imported)
    return here == there or FLOORS[there] < FLOORS[here]


IMPORTS = [
    (name_of(path), imported, at_once) for path in FILES for imported, at_once in imports_of(path)
]
INSIDE = {(a, b) for a, b, _ in IMPORTS if b.split(".")[0] == "pyhub"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_floor(module: str) -> None:
    assert room_of(module) in FLOORS


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_every_room_of_the_table_exists(room: str) -> None:
    assert room in MODULES


def test_imports_go_down_only() -> None:
    assert [pair for pair in sorted(INSIDE) if not is_allowed(*pair)] == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("pyhub.datablock.producer", "pyhub.hub.message_hub"),
        ("pyhub.errors", "pyhub.names"),
        ("pyhub._core", "pyhub.datablock.block_layout"),
        ("pyhub.sources.hdf5", "pyhub.sinks.nexus"),
        ("pyhub.hub.broker.server", "pyhub"),
        ("pyhub._codec", "pyhub._datablock"),
    ],
)
def test_an_import_that_goes_up_is_found(importer: str, imported: str) -> None:
    assert not is_allowed(importer, imported)


def test_a_module_on_no_floor_is_found() -> None:
    with pytest.raises(AssertionError, match="on no floor"):
        room_of("pyhub.helpers")


def test_a_channel_never_imports_the_hub() -> None:
    channels = {"pyhub.datablock"}
    assert not [
        pair for pair in INSIDE if is_in(pair[0], channels) and is_in(pair[1], {"pyhub.hub"})
    ]


@pytest.mark.parametrize("native", sorted(NATIVE))
def test_a_native_module_is_imported_by_its_own_column_only(native: str) -> None:
    importers = {importer for importer, imported in INSIDE if imported == native}
    assert {importer for importer in importers if not is_in(importer, NATIVE[native])} == set()


@pytest.mark.parametrize("native", sorted(NATIVE))
def test_every_exception_for_a_native_module_is_needed(native: str) -> None:
    importers = {importer for importer, imported in INSIDE if imported == native}
    assert {
        room for room in NATIVE[native] if not any(is_in(i, {room}) for i in importers)
    } == set()


@pytest.mark.parametrize("library", sorted(OUTSIDE))
def test_a_library_is_used_in_its_rooms_only(library: str) -> None:
    importers = {a for a, b, _ in IMPORTS if b.split(".")[0] == library}
    assert importers, "nobody uses it"
    assert {importer for importer in importers if not is_in(importer, OUTSIDE[library])} == set()


def test_the_lowest_floor_knows_no_wire_no_codec_and_no_log() -> None:
    lowest = [(a, b) for a, b, _ in IMPORTS if FLOORS[room_of(a)] < 2]
    assert lowest, "nothing was found"
    assert [pair for pair in lowest if pair[1].split(".")[0] in FLOOR_1_MAY_NOT] == []


def test_an_optional_library_is_imported_where_it_is_used() -> None:
    early = [(a, b) for a, b, at_once in IMPORTS if b.split(".")[0] in EXTRAS and at_once]
    assert early == []


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    python = tmp_path / "a.py"
    python.write_text("import zmq\nfrom pyhub import errors\ndef f():\n    import h5py\n")
    cython = tmp_path / "a.pyx"
    cython.write_text(
        "cimport cython\nfrom pyhub._core cimport Segment\nfrom pyhub import errors\n"
    )
    assert set(imports_of(python)) == {("zmq", True), ("pyhub.errors", True), ("h5py", False)}
    assert set(imports_of(cython)) == {
        ("cython", True),
        ("pyhub._core", True),
        ("pyhub.errors", True),
    }
