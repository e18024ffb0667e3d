"""Key files: their owner's alone from the first moment, and refused when they are not."""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest
import zmq

from pyhub.errors import AccessDenied
from pyhub.hub.keys import (
    KeyPair,
    create_key_files,
    is_public_key,
    load_or_create_keys,
    read_keys,
    shortened_key,
)
from tests.hub.conftest import Spawn, line

# Eight processes that wait for one signal, then all make the same keys.
RACE = """
    import os, sys
    from pathlib import Path
    from pyhub.hub.keys import load_or_create_keys

    path = Path(sys.argv[1])
    hold, release = os.pipe()
    children = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os.close(release)
            os.read(hold, 1)  # until nobody holds the other end
            os.write(1, (load_or_create_keys(path).public + "\\n").encode())
            os._exit(0)
        children.append(pid)
    os.close(release)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    print("done", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.key"


def test_keys_are_made_once_and_belong_together(path: Path) -> None:
    keys = load_or_create_keys(path)
    assert zmq.curve_public(keys.secret.encode()).decode() == keys.public
    assert load_or_create_keys(path) == keys
    assert list(path.parent.iterdir()) == [path]  # and no parts are left


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_key_file_is_its_owners_alone_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        load_or_create_keys(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_processes_that_come_at_once_end_up_with_one_pair(path: Path, spawn: Spawn) -> None:
    child = spawn(RACE, path)
    lines = [line(child) for _ in range(9)]
    assert lines[-1] == "done"
    assert set(lines[:-1]) == {load_or_create_keys(path).public}
    assert list(path.parent.iterdir()) == [path]


def test_threads_that_come_at_once_end_up_with_one_pair(path: Path) -> None:
    n_threads = 8
    found: list[KeyPair] = []
    together = threading.Barrier(n_threads)

    def come() -> None:
        together.wait()
        found.append(load_or_create_keys(path))

    threads = [threading.Thread(target=come) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == n_threads
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_key_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    load_or_create_keys(path)
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"mode {mode:04o}.*(\n.*)*chmod 600 {path}"):
        load_or_create_keys(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_that_only_its_owner_can_read_is_good(path: Path, mode: int) -> None:
    keys = load_or_create_keys(path)
    path.chmod(mode)
    assert load_or_create_keys(path) == keys


def test_a_key_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_create_keys(path)
    stranger = os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(path, stranger, -1)
    else:  # nobody else may give a file away, so become somebody else
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(AccessDenied, match=r"owner .*(\n.*)*chmod 600"):
        load_or_create_keys(path)


@pytest.mark.parametrize("has_target", [True, False])
def test_a_link_in_the_place_of_a_key_file_is_not_followed(path: Path, has_target: bool) -> None:
    elsewhere = path.with_name("elsewhere.key")
    if has_target:
        load_or_create_keys(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(AccessDenied, match="plain file of your own"):
        load_or_create_keys(path)
    assert elsewhere.exists() == has_target


def test_a_directory_in_the_place_of_a_key_file_is_refused(path: Path) -> None:
    path.mkdir(mode=0o700)
    with pytest.raises(AccessDenied):
        load_or_create_keys(path)


def test_a_pipe_in_the_place_of_a_key_file_does_not_keep_anybody_waiting(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(AccessDenied):
        load_or_create_keys(path)


def wrong_pair() -> bytes:
    (public, _), (_, secret) = zmq.curve_keypair(), zmq.curve_keypair()
    return msgspec.json.encode({"public": public.decode(), "secret": secret.decode()})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        b"{}",
        b"[]",
        b'{"public": "x", "secret": "y"}',
        b'{"public": 1, "secret": 2}',
        b'{"public": "' + b"a" * 40 + b'", "secret": "' + "ä".encode() * 40 + b'"}',
        wrong_pair(),
        wrong_pair()[:-10],
        wrong_pair() + b" " * 5000 + b"x",
    ],
)
def test_a_key_file_that_holds_no_pair_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(AccessDenied, match=r"no CurveZMQ key pair.*\n.*Remove it"):
        load_or_create_keys(path)


def test_a_secret_is_shown_nowhere(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = load_or_create_keys(path)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pyhub.hub").error("%s %r", keys, keys)
    # Damaged in a way that leaves the secret legible.
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(AccessDenied) as refusal:
        load_or_create_keys(path)
    error: BaseException | None = refusal.value
    shown = [caplog.text, repr(keys), str(keys), f"{keys}", f"{[keys]}"]
    while error is not None:
        shown.append(f"{error} {error!r}")
        error = error.__cause__
    assert keys.public in shown[1]
    assert not any(keys.secret in text for text in shown)


# --- Key pairs to hand out ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_pair_in_two_files_has_its_secret_in_one_of_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keys = create_key_files(tmp_path / "alignment.gui")
    finally:
        os.umask(before)
    assert zmq.curve_public(keys.secret.encode()).decode() == keys.public
    assert read_keys(tmp_path / "alignment.gui.key") == keys
    assert (tmp_path / "alignment.gui.pub").read_text() == f"{keys.public}\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"alignment.gui.key": 0o600, "alignment.gui.pub": 0o644}


@pytest.mark.parametrize("kind", ["key", "pub"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_pair_never_takes_the_place_of_another_file(
    tmp_path: Path, kind: str, is_link: bool
) -> None:
    there = tmp_path / f"gui.{kind}"
    if is_link:
        there.symlink_to(tmp_path / "nowhere")
    else:
        there.write_text("in use")
    with pytest.raises(FileExistsError, match=f"{there} exists.*\n  Take another name"):
        create_key_files(tmp_path / "gui")
    assert list(tmp_path.iterdir()) == [there], "and nothing of it is left"
    assert is_link or there.read_text() == "in use"


def test_only_one_of_two_pairs_that_are_made_at_once_comes_to_be(tmp_path: Path) -> None:
    n_threads = 8
    found: list[KeyPair] = []
    refused: list[FileExistsError] = []
    together = threading.Barrier(n_threads)

    def come() -> None:
        together.wait()
        try:
            found.append(create_key_files(tmp_path / "gui"))
        except FileExistsError as error:
            refused.append(error)

    threads = [threading.Thread(target=come) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == n_threads - 1
    assert found == [read_keys(tmp_path / "gui.key")]
    assert (tmp_path / "gui.pub").read_text() == f"{found[0].public}\n"


def test_keys_that_are_only_read_are_never_made(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no key file {path}.*\n.*pyhub keygen"):
        read_keys(path)
    assert not path.exists()


def test_keys_that_are_only_read_must_be_ones_own_too(path: Path) -> None:
    keys = load_or_create_keys(path)
    assert read_keys(path) == keys
    path.chmod(0o640)
    with pytest.raises(AccessDenied, match=r"mode 0640(.*\n)*.*pyhub keygen"):
        read_keys(path)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(
        AccessDenied, match=r"no CurveZMQ key pair.*\n  Have new ones made: pyhub k"
    ):
        read_keys(path)


def test_a_public_key_is_known_by_its_form() -> None:
    assert is_public_key(zmq.curve_keypair()[0].decode())
    good = "0" * 40
    assert is_public_key(good)
    for bad in ("", good[1:], good + "0", good[1:] + "~", good[1:] + "ä", "#" * 40, " " * 40):
        assert not is_public_key(bad), bad


def test_a_key_is_shortened_to_what_people_can_compare() -> None:
    assert shortened_key("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID") == "Yne@$w-v..."
