"""What pyhub needs of a machine, looked at one by one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import zmq

from pyhub._core import ABI_VERSION, lease_is_alive, process_lease
from pyhub.errors import AccessDenied, PyhubError
from pyhub.hub.broker.site import read_site
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.runtime import BrokerConfig, BrokerFile, RuntimeDirectory
from pyhub.monitor.survey import survey
from pyhub.names import lease_path, shm_directory

__all__ = ["Finding", "Verdict", "examine"]

GIB = 1 << 30
MIN_LIBZMQ = (4, 3, 5)
MIN_DESCRIPTORS = 1024
_ANSWER_S = 2.0  # a broker that takes longer is not well


class Verdict(StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it stands, and what to do if not well."""

    subject: str
    verdict: Verdict
    fact: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, in the order in which a frame would meet it."""
    for look in _LOOKS:
        try:
            yield from look()
        except (PyhubError, OSError) as error:
            yield _problem(
                look.__name__.strip("_").replace("_", " "),
                Verdict.FAIL,
                error,
                "make that work for this user, or set PYHUB_SHM_DIR and PYHUB_RUNTIME_DIR to "
                "other places",
            )


def _problem(subject: str, verdict: Verdict, error: Exception, advice: str) -> Finding:
    """Return an error as a finding; `advice` where it gives none itself."""
    first, _, rest = str(error).partition("\n")
    return Finding(subject, verdict, first, rest.strip() or advice)


_EXTRAS = {
    "h5py": "needed by record and replay: pip install pyhub[hdf5]",
    "PyYAML": "needed by a broker's configuration: pip install pyhub[site]",
}


def _versions() -> Iterator[Finding]:
    parts = [f"pyhub {importlib.metadata.version('pyhub')} (layout {ABI_VERSION})"]
    parts.append(f"Python {platform.python_version()} on {platform.machine()}")
    parts += [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("numpy", "pyzmq", "msgpack", "msgspec")
    ]
    for name, purpose in _EXTRAS.items():
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {name} ({purpose})")
    yield Finding("versions", Verdict.OK, ", ".join(parts))
    is_new = zmq.zmq_version_info() >= MIN_LIBZMQ
    yield Finding(
        "libzmq",
        Verdict.OK if is_new and zmq.has("curve") else Verdict.FAIL,
        f"{zmq.zmq_version()}, CURVE {'available' if zmq.has('curve') else 'missing'}",
        "pyhub needs 4.3.5 with CURVE: pip install --upgrade pyzmq, or conda update pyzmq",
    )


def _shared_memory() -> Iterator[Finding]:
    directory = shm_directory()
    if not directory.is_dir():
        yield Finding(
            "shared memory",
            Verdict.FAIL,
            f"there is no directory {directory}",
            "make it, or unset PYHUB_SHM_DIR: then it is /dev/shm",
        )
        return
    usage = shutil.disk_usage(directory)
    is_small = usage.total < GIB
    is_full = usage.free < usage.total // 10
    yield Finding(
        "shared memory",
        Verdict.WARN if is_small or is_full else Verdict.OK,
        f"{directory}: {usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free, "
        f"{_file_system(directory)}",
        "make it larger (mount -o remount,size=8G /dev/shm; docker run --shm-size=8g), or free "
        "some: pyhub clean",
    )
    if _file_system(directory) not in ("tmpfs", "ramfs"):
        yield Finding(
            "shared memory",
            Verdict.WARN,
            f"{directory} is no tmpfs: frames are written to a disk",
            "unset PYHUB_SHM_DIR, or point it at a tmpfs",
        )
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.close(descriptor)
    yield Finding("segments", Verdict.OK, "unnamed files can be made and allocated")


def _leases() -> Iterator[Finding]:
    path = lease_path()
    if not path.parent.is_dir():
        return  # said before
    works = lease_is_alive(path, process_lease(path)) and not lease_is_alive(path, 2)
    yield Finding(
        "leases",
        Verdict.OK if works else Verdict.FAIL,
        f"byte locks on {path} {'work' if works else 'do not tell the living from the dead'}",
        "the directory must be on a local file system that knows POSIX locks",
    )


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        "open files",
        Verdict.OK if soft >= MIN_DESCRIPTORS else Verdict.WARN,
        f"{soft} (at most {hard})",
        f"a broker with many programs needs more: ulimit -n {MIN_DESCRIPTORS}",
    )
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        yield Finding(
            "file size", Verdict.WARN, f"files may have {size} bytes at most",
            "segments are files: ulimit -f unlimited",
        )  # fmt: skip


def _namespaces() -> Iterator[Finding]:
    inodes = [f"{kind} {os.stat(f'/proc/self/ns/{kind}').st_ino}" for kind in ("pid", "ipc")]
    pid_one = Path("/proc/1/comm").read_text().strip() if Path("/proc/1/comm").exists() else "?"
    in_container = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    yield Finding(
        "namespaces",
        Verdict.WARN if in_container else Verdict.OK,
        f"{', '.join(inodes)}; process 1 is {pid_one}"
        + ("; this is a container" if in_container else ""),
        "programs meet if they share /dev/shm (docker run --ipc=container:... or -v) and, for "
        "several\n  producers of one channel, the PID namespace (--pid=container:...)",
    )


def _logind() -> Iterator[Finding]:
    config = Path("/etc/systemd/logind.conf")
    if Path("/run/systemd/seats").exists() and os.geteuid() >= 1000:
        text = config.read_text() if config.exists() else ""
        keeps = any(line.strip() == "RemoveIPC=no" for line in text.splitlines())
        yield Finding(
            "logout",
            Verdict.OK if keeps else Verdict.WARN,
            "segments outlive a logout" if keeps else "logind removes a user's segments at logout",
            "for programs that go on: RemoveIPC=no in /etc/systemd/logind.conf, a system user,\n"
            "  or loginctl enable-linger",
        )


def _runtime() -> Iterator[Finding]:
    runtime = RuntimeDirectory()
    broker = runtime.read_broker()
    yield Finding("runtime directory", Verdict.OK, f"{runtime.path}, yours alone")
    yield Finding(
        "broker",
        Verdict.OK,
        f"pid {broker.pid} at {broker.endpoint}"
        if broker
        else "none runs; the first program that needs one starts it",
    )
    if broker is not None:
        yield from _site_configuration(broker)


def _site_configuration(broker: BrokerFile) -> Iterator[Finding]:
    file = _configuration_of(broker.pid)
    if file is None:
        return
    subject = "site configuration"
    try:
        site = read_site(file)
    except (PyhubError, OSError) as error:
        # The broker goes on with what it had read, and would not start with this again.
        yield _problem(subject, Verdict.WARN, error, f"mend it, then: pyhub config check {file}")
        return
    listens = f", listens on {', '.join(site.listen)}" if site.listen else ""
    yield Finding(subject, Verdict.OK, f"{file}: {len(site.clients)} clients{listens}")


def _configuration_of(pid: int) -> Path | None:
    """Return the file that ``pyhub broker --config`` was given; None: none that can be seen."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == "--config" or word.startswith("--config="):
                given = following if word == "--config" else word.removeprefix("--config=")
                return Path(f"/proc/{pid}/cwd").readlink() / given
    except OSError:  # it ended just now, or is another user's
        pass
    return None


def _hub() -> Iterator[Finding]:
    config = BrokerConfig(autostart=False, timeout_s=_ANSWER_S, name="pyhub doctor")
    if config.resolved_endpoint is None:
        try:
            broker = RuntimeDirectory().read_broker()
        except (PyhubError, OSError):
            return  # said before
        if broker is None:
            yield Finding("hub", Verdict.OK, "no broker runs, so no programs are connected")
            return
    where = config.resolved_endpoint or "this user's broker"
    try:
        with MessageHub(config) as hub:
            yield Finding("hub", Verdict.OK, f"{where} answers; {_connected(hub)}")
    except (PyhubError, OSError) as error:
        yield _problem("hub", Verdict.FAIL, error, "end that broker: pyhub broker --stop")


def _connected(hub: MessageHub) -> str:
    try:
        programs, counters = hub.programs()
    except AccessDenied:
        return "which programs are connected, it tells administrators only"
    counted = "".join(f", {name}: {count}" for name, count in sorted(counters.items()))
    return f"{len(programs) - 1} programs connected{counted}"  # this one is among them


def _channels() -> Iterator[Finding]:
    if not shm_directory().is_dir():
        return
    states = survey(sample_s=0.0)
    dead = [state.name for state in states if state.state == "dead"]
    bad = [state.name for state in states if state.state == "unreadable"]
    yield Finding(
        "channels",
        Verdict.WARN if dead or bad else Verdict.OK,
        f"{sum(state.state == 'live' for state in states)} live"
        + (f", left by dead producers: {', '.join(dead)}" if dead else "")
        + (f", unreadable: {', '.join(bad)}" if bad else ""),
        "remove what the dead left: pyhub clean",
    )


def _file_system(directory: Path) -> str:
    """Return the type of the file system that holds `directory`."""
    found, best = "unknown", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        # Of several mounts at one place, the last is on top.
        if directory.resolve().is_relative_to(mount) and len(mount) >= best:
            found, best = kind, len(mount)
    return found


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _shared_memory,
    _leases,
    _limits,
    _namespaces,
    _logind,
    _runtime,
    _hub,
    _channels,
)
