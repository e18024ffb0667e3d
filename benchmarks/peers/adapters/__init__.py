"""One file a peer. It imports the peer's library, and exports `WAYS` by name.

Files here may be called like the library that they import: they are
`adapters.zenoh`, the library is `zenoh`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from link import Way

__all__ = ["PEERS", "distributions", "is_here", "load"]

# Module here -> distributions whose versions belong in the report.
PEERS: dict[str, tuple[str, ...]] = {
    "floor": (),
    "hub": ("pyhub",),
    "pyzmq": ("pyzmq",),
    "mp_queue": (),
    "semaphore": (),
    "iceoryx2": ("iceoryx2",),
    "zenoh": ("eclipse-zenoh",),
    "pynng": ("pynng",),
    "p4p": ("p4p", "pvxslibs", "epicscorelibs"),
    "pvapy": ("pvapy",),
    "zerobuffer": ("zerobuffer-ipc",),
}


def load(module: str) -> dict[str, Way]:
    """Return the ways of one peer by name; an ImportError says what is not installed."""
    return dict(importlib.import_module(f"adapters.{module}").WAYS)


def is_here(module: str) -> bool:
    """Say whether the adapter exists, wherever its library may be."""
    return (Path(__file__).parent / f"{module}.py").exists()


def distributions() -> dict[str, str]:
    """Return the version of every peer that is installed, and of numpy."""
    versions = {}
    for name in sorted({"numpy", *(name for names in PEERS.values() for name in names)}):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
