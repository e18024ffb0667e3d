"""The runtime directory: its user's alone, and where exactly one broker is found."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
from pathlib import Path

import msgspec
import pytest
import zmq

from pyhub import AccessDenied, BrokerConfig, BrokerUnreachable, MessageHub, PyhubError
from pyhub._core import process_lease
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from pyhub.names import lease_path
from tests.hub.conftest import Spawn, line

PUBLIC = zmq.curve_keypair()[0].decode()

HOLD_LOCK = """
    import sys
    from pyhub.hub.runtime import RuntimeDirectory

    with RuntimeDirectory(sys.argv[1]).lock("start.lock", 0.0) as is_ours:
        print(is_ours, flush=True)
        input()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def broker_file(lease: int, epoch: str = "epoch") -> BrokerFile:
    return BrokerFile("ipc:///x", PUBLIC, epoch, os.getpid(), lease, str(lease_path()))


# --- Where it is ---


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYHUB_RUNTIME_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert RuntimeDirectory().path == tmp_path / "own"
    monkeypatch.delenv("PYHUB_RUNTIME_DIR")
    assert RuntimeDirectory().path == tmp_path / "pyhub"
    assert RuntimeDirectory(tmp_path / "given").path == tmp_path / "given"


def test_a_relative_path_is_the_same_directory_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broker leaves the directory in which it was started.
    monkeypatch.chdir(tmp_path)
    assert RuntimeDirectory("own").path == tmp_path / "own"


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_it_is_made_for_its_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        runtime = RuntimeDirectory(tmp_path / "deep" / "down")
    finally:
        os.umask(before)
    assert mode_of(runtime.path) == 0o700


# --- What is refused ---


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770, 0o720, 0o1777])
def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "own"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"mode {mode:04o}(.*\n)*.*chmod 700 {path}"):
        RuntimeDirectory(path)


def test_a_hub_says_so_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(AccessDenied, match=f"chmod 700 {tmp_path}, or set PYHUB_RUNTIME_DIR"):
        MessageHub(BrokerConfig(runtime_dir=tmp_path))


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own"
    path.mkdir(mode=0o700)
    stranger = os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(path, stranger, -1)
    else:  # nobody else may give a directory away, so become somebody else
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(AccessDenied, match=r"owner \d+"):
        RuntimeDirectory(path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own"
    path.touch(mode=0o600)
    with pytest.raises(AccessDenied, match="must be a directory of yours alone"):
        RuntimeDirectory(path)


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "own").symlink_to("target")
    with pytest.raises(AccessDenied, match="must be a directory of yours alone"):
        RuntimeDirectory(tmp_path / "own")


@pytest.mark.parametrize("parent", ["a/file", "/proc/nothing", "/dev/null/x"])
def test_a_place_where_none_can_be_made_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    with pytest.raises(AccessDenied, match=r"cannot be made: .*(\n.*)*Set PYHUB_RUNTIME_DIR"):
        RuntimeDirectory(tmp_path / parent / "own")


def test_a_path_too_long_for_sockets_is_refused(runtime: Path) -> None:
    path = runtime / ("x" * (107 - len(str(runtime))))
    with pytest.raises(PyhubError, match=r"at most 107 bytes(.*\n)*.*Set PYHUB_RUNTIME_DIR"):
        RuntimeDirectory(path)


def test_the_longest_path_that_is_allowed_takes_sockets(runtime: Path) -> None:
    # 107 bytes, less the name of a channel's socket and the slashes.
    path = runtime / ("x" * (107 - len(f"{runtime}//{'0' * 16}.sock")))
    allowed = RuntimeDirectory(path)
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.bind(allowed.endpoint_of("cam1"))
        publisher.bind(allowed.broker_endpoint)
    with pytest.raises(PyhubError, match="107 bytes"):
        RuntimeDirectory(f"{path}x")


# --- broker.json ---


def test_a_living_broker_is_found_and_a_dead_one_is_not(runtime: Path, spawn: Spawn) -> None:
    directory = RuntimeDirectory(runtime)
    assert directory.read_broker() is None
    living = broker_file(process_lease(lease_path()))
    directory.write_broker(living)
    assert directory.read_broker() == living
    assert mode_of(runtime / "broker.json") == 0o600
    child = spawn(
        """
        from pyhub._core import process_lease
        from pyhub.names import lease_path
        print(process_lease(lease_path()), flush=True)
        input()
        """
    )
    dying = broker_file(int(line(child)))
    directory.write_broker(dying)
    assert directory.read_broker() == dying
    child.kill()
    child.wait()
    assert directory.read_broker() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"endpoint": 1}',
        msgspec.json.encode(broker_file(-1)),
        msgspec.json.encode(broker_file(2**64 - 1)),
        msgspec.json.encode(broker_file(1)).replace(b":1,", b":" + b"9" * 40 + b","),
    ],
)
def test_a_damaged_broker_file_is_no_broker(runtime: Path, content: bytes) -> None:
    (runtime / "broker.json").write_bytes(content)
    assert RuntimeDirectory(runtime).read_broker() is None


def test_where_a_broker_cannot_be_told_of_nothing_is_left(runtime: Path) -> None:
    (runtime / "broker.json").mkdir()  # which no file can replace
    with pytest.raises(OSError, match=r"broker\.json"):
        RuntimeDirectory(runtime).write_broker(broker_file(1, epoch="next"))
    assert [path.name for path in runtime.iterdir()] == ["broker.json"]


def test_a_broker_takes_back_its_own_file_only(runtime: Path) -> None:
    directory = RuntimeDirectory(runtime)
    directory.remove_broker("epoch")  # there is none
    directory.write_broker(broker_file(1, epoch="next"))
    directory.remove_broker("former")
    assert (runtime / "broker.json").exists()
    directory.remove_broker("next")
    assert not (runtime / "broker.json").exists()


# --- Locks ---


def test_a_lock_is_held_by_one_process_until_that_one_dies(runtime: Path, spawn: Spawn) -> None:
    directory = RuntimeDirectory(runtime)
    child = spawn(HOLD_LOCK, runtime)
    assert line(child) == "True"
    for timeout_s in (0.0, 0.05, -1.0):
        with directory.lock("start.lock", timeout_s) as is_ours:
            assert not is_ours
    with directory.lock("other.lock", 0.0) as is_ours:
        assert is_ours
    child.kill()
    with directory.lock("start.lock", 30.0) as is_ours:
        assert is_ours
    assert mode_of(runtime / "start.lock") == 0o600


# --- Finding a broker ---


def test_without_a_broker_one_is_told_how_to_start_it(runtime: Path) -> None:
    with pytest.raises(BrokerUnreachable, match=f"no broker runs in {runtime}.*\n.*pyhub broker"):
        MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False))


def test_a_broker_that_does_not_start_is_reported_with_its_log(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BrokerUnreachable, match=re.escape(str(runtime / "broker.log"))):
        MessageHub(BrokerConfig(runtime_dir=runtime, timeout_s=0.2))
    assert mode_of(runtime / "broker.log") == 0o600


def test_a_start_that_hangs_keeps_others_until_their_deadline_only(runtime: Path) -> None:
    descriptor = os.open(runtime / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BrokerUnreachable, match=r"did not start within 0\.2 s"):
            MessageHub(BrokerConfig(runtime_dir=runtime, timeout_s=0.2))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("who", ["broker", "client"])
@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_key_file_that_is_open_to_others_stops_the_start_at_once(
    runtime: Path, who: str, mode: int
) -> None:
    path = RuntimeDirectory(runtime).key_path(who)
    load_or_create_keys(path)
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"chmod 600 {path}"):
        MessageHub(BrokerConfig(runtime_dir=runtime, timeout_s=3600.0))
