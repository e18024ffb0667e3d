"""A site's configuration: what it grants, what it may not say, and who may write it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from pyhub.errors import AccessDenied, ConfigError
from pyhub.hub.broker.rights import ROLES, VERBS, Client
from pyhub.hub.broker.site import Site, example, read_site

EXAMPLE = Path(__file__).parents[2] / "examples/site/broker.yaml"


def new_key() -> str:
    return zmq.curve_keypair()[0].decode()


GUI, DISPLAY = new_key(), new_key()
TWO_CLIENTS = f"""
clients:
  - name: gui
    key: "{GUI}"
    role: operator
    rights:
      call: ["cam1.*"]
  - {{name: display, key: "{DISPLAY}", role: viewer}}
"""
Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration as an editor does: a new file in the place of the old one."""
    path = tmp_path / "broker.yaml"

    def write_one(text: str | bytes) -> Path:
        part = tmp_path / "part"
        part.write_bytes(text if isinstance(text, bytes) else text.encode())
        part.chmod(0o644)
        part.replace(path)
        return path

    return write_one


def read(write: Write, text: str | bytes) -> Site:
    return read_site(write(text))


# --- What it says ---


def test_a_file_says_who_may_connect_and_what_they_may(write: Write) -> None:
    site = read(
        write,
        "runtime_dir: /run/pyhub\n"
        'listen: ["tcp://0.0.0.0:5570", "tcp://*:5571", "tcp://[::1]:1", "tcp://127.0.0.1:*"]\n'
        "key_file: /etc/pyhub/broker.key\n" + TWO_CLIENTS,
    )
    assert site.runtime_dir == Path("/run/pyhub")
    assert site.key_file == Path("/etc/pyhub/broker.key")
    assert site.listen == (
        "tcp://0.0.0.0:5570",
        "tcp://*:5571",
        "tcp://[::1]:1",
        "tcp://127.0.0.1:*",
    )
    assert site.clients == {
        GUI.encode(): Client("gui", "operator", {"call": ["cam1.*"]}, GUI),
        DISPLAY.encode(): Client("display", "viewer", {}, DISPLAY),
    }


@pytest.mark.parametrize(
    "text", ["{}", "clients: []", "clients:\nlisten:\n", "runtime_dir:\nkey_file:\nclients: ~"]
)
def test_what_is_left_out_has_a_default(write: Write, text: str) -> None:
    path = write(text)
    assert read_site(path) == Site(path, None, (), None, {})


def test_one_list_of_rights_may_serve_several_clients(write: Write) -> None:
    site = read(
        write,
        f'clients:\n  - {{name: a, key: "{GUI}", role: viewer, rights: &all {{set: ["*"]}}}}\n'
        f'  - {{name: b, key: "{DISPLAY}", role: viewer, rights: *all}}\n',
    )
    assert [client.may("set", "x") for client in site.clients.values()] == [True, True]


def test_the_example_is_the_file_among_the_examples() -> None:
    assert EXAMPLE.read_text() == example()


def test_the_example_loads_and_names_every_role_with_its_verbs(write: Write) -> None:
    site = read(write, example())
    assert [client.name for client in site.clients.values()] == ["hall-display", "alignment-gui"]
    assert site.listen == ("tcp://*:5570",)
    for role, verbs in ROLES.items():
        (line,) = [line for line in example().splitlines() if line.startswith(f"#   {role}")]
        assert role == "admin" or {verb for verb in VERBS if verb in line} == verbs


# --- What it may not say ---


def client(**fields: object) -> str:
    """Return a file with one client, some of its fields replaced."""
    said = {"name": "gui", "key": f'"{GUI}"', "role": "viewer"} | fields
    return "clients:\n  - " + "\n    ".join(f"{word}: {value}" for word, value in said.items())


NOT_40 = r"clients\[0\]\.key, of 'gui', is no public key: {} characters.\n  It has 40.*keygen"
ENDPOINT = r"listen\[0\] is .*\n  Write tcp://ADDRESS:PORT"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Its form
        ("", r"the file: Expected 'object', got 'null'.\n  The file has runtime_dir, listen"),
        ("- 1", "the file: Expected 'object', got 'array'"),
        ("client: []", "unknown field 'client'.\n  The file has runtime_dir, listen, key_file, c"),
        ("clients: 3", r"clients: Expected 'array \| null', got 'int'"),
        ("clients: [gui]", r"clients\[0\]: Expected 'object', got 'str'.\n  A client has name"),
        (client(roles="x"), r"clients\[0\]: .*unknown field 'roles'.\n  A client has name, key, r"),
        ("clients: [{name: a}]", r"clients\[0\]: Object missing required field 'key'"),
        (client(role="operatr"), r"clients\[0\]\.role: .*'operatr'.\n  A role is one of viewer, o"),
        (client(role="[viewer]"), r"clients\[0\]\.role: Expected 'str', got 'array'"),
        (client(role="a - at b"), r"clients\[0\]\.role: .*'a - at b'.\n  A role is one of"),
        (client(role="a" * 10_000), r"clients\[0\]\.role: .*a{100}"),
        (client(role=""), r"clients\[0\]\.role: Expected 'str', got 'null'.\n  A role is"),
        (client(rights="{write: [a]}"), r"clients\[0\]\.rights: .*'write'.\n  For each of read, s"),
        (client(rights="{set: a}"), r"clients\[0\]\.rights.*: Expected 'array', got 'str'"),
        (client(rights="{set: [1]}"), r"clients\[0\]\.rights.*: Expected 'str', got 'int'"),
        (client(rights='{set: [""]}'), r"clients\[0\]\.rights.*: Expected 'str' of length >= 1"),
        (client(rights=f"{{set: [{'a' * 256}]}}"), r"clients\[0\]\.rights.* of length <= 255"),
        # Clients
        (client(name='"a b"'), r"clients\[0\]\.name is 'a b'.\n  Use 1 to 64"),
        (client(name="a" * 65), r"clients\[0\]\.name is 'a+'.\n  Use 1 to 64"),
        (client(name=7), r"clients\[0\]\.name: Expected 'str', got 'int'"),
        (client(name="local"), r"clients\[0\]\.name is that of the broker's own user too"),
        (client(key='"abc"'), NOT_40.format(3)),
        (client(key=f'"{GUI}0"'), NOT_40.format(41)),
        (client(key=f'"{GUI[:39]}~"'), NOT_40.format(40)),
        (client(key=f'"{GUI[:39]}ä"'), NOT_40.format(40)),
        (client(key=f'"{"#" * 40}"'), NOT_40.format(40)),
        (client(key='""'), NOT_40.format(0)),
        (
            TWO_CLIENTS.replace(DISPLAY, GUI),
            r"clients\[1\]\.key is that of clients\[0\] too \('display'\)",
        ),
        (TWO_CLIENTS.replace("display", "gui"), r"clients\[1\]\.name is that of clients\[0\] too"),
        # Endpoints and paths
        ("listen: tcp://*:5570", r"listen: Expected 'array \| null', got 'str'"),
        ("listen: [5570]", r"listen\[0\]: Expected 'str', got 'int'"),
        ('listen: ["ipc:///tmp/x"]', ENDPOINT),
        ('listen: ["tcp://beamline:5570"]', ENDPOINT),
        ('listen: ["tcp://eth0:5570"]', ENDPOINT),
        ('listen: ["tcp://*"]', ENDPOINT),
        ('listen: ["tcp://*:0"]', ENDPOINT),
        ('listen: ["tcp://*:65536"]', ENDPOINT),
        ('listen: ["tcp://1.2.3:5570"]', ENDPOINT),
        ('listen: ["tcp://1.2.3.256:5570"]', ENDPOINT),
        ('listen: ["tcp://[:::]:5570"]', ENDPOINT),
        ('listen: ["tcp://*:5570\\n"]', ENDPOINT),
        ('listen: ["tcp://*:1", "tcp://*:1"]', r"listen\[1\] is 'tcp://\*:1' again"),
        ("runtime_dir: run", "runtime_dir is 'run'.\n  Write the whole path"),
        ("key_file: ~/broker.key", "key_file is '~/broker.key'.\n  Write the whole path"),
        # YAML
        ("clients:\n  - name: a\n key: b", "line 3, column 2 is no YAML"),
        ("a: [", "line 2, column 1 is no YAML"),
        ("clients:\n\t- x", "line 2, column 1 is no YAML: found character that cannot start"),
        ("clients: *gui", "line 1, column 10 is no YAML: found undefined alias"),
        ("clients:\n--- {}\n", "line 2, column 1 is no YAML: but found another document"),
        ("listen:\nclients:\nlisten:\n", "line 3 has 'listen' for the second time"),
        (client(role="viewer\n    role: admin"), "line 5 has 'role' for the second time"),
        ("? [a]\n: b", "line 1 has brackets in the place of a name"),
        ("runtime_dir: !!python/name:os.system x", "line 1 has the tag"),
        ("runtime_dir: !!timestamp x", "line 1 has the tag"),
        ("runtime_dir: 2001-99-99", "the file: month must be in 1..12"),
        ("a: &a [*a]", "unknown field 'a'"),
        ("clients:\n  - [\n" + "[" * 500_000, "line 3 has brackets in brackets"),
        ("clients: " + "{a: " * 100_000, "line 1 has brackets in brackets"),
        ("a\0b", "is no YAML: .*control characters"),
        (b"name: a\nb: \xff", "line 2 is no UTF-8 text"),
        (b"# " + b"x" * 2**20, "more than 1048576 bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_place(
    write: Write, text: str | bytes, message: str
) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        read_site(path)
    assert str(refusal.value).startswith(str(path))
    first, second = str(refusal.value).split("\n", 1)
    assert second.startswith("  "), "what to do next"
    assert len(first) < 400


def test_what_stands_in_the_place_of_a_key_is_not_shown(write: Write) -> None:
    secret = zmq.curve_keypair()[1].decode()
    with pytest.raises(ConfigError) as refusal:
        read(write, client(key=f'"{secret}x"'))
    assert secret not in str(refusal.value)


words = st.sampled_from(
    [*"[]{}:,-&*!|>'\"%@#?~ \n\t", "clients", "name", "key", "role", "rights", "listen", "- ",
     "\n  ", ": ", "viewer", f'"{GUI}"', "<<", "!!", "1", "2001-01-01", "null", "\x85", "ä", "="]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(words, max_size=30).map("".join)))
def test_no_text_makes_reading_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode(errors="replace"))
    path.chmod(0o644)
    try:
        assert read_site(path).path == path
    except ConfigError as refusal:
        assert str(path) in str(refusal)  # noqa: PT017  most texts are refused, not all


# --- Who may write it ---


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o640, 0o755])
def test_a_file_that_only_its_owner_writes_is_good(write: Write, mode: int) -> None:
    path = write(TWO_CLIENTS)
    path.chmod(mode)
    assert len(read_site(path).clients) == 2


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(write: Write, mode: int) -> None:
    path = write(TWO_CLIENTS)
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"{path} has mode {mode:04o}.*\n.*chmod 644 {path}"):
        read_site(path)


def test_a_file_of_another_user_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(TWO_CLIENTS)
    stranger = os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(path, stranger, -1)
    else:  # nobody else may give a file away, so become somebody else
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(AccessDenied, match=r"owner .*\n.*chown root"):
        read_site(path)


def test_a_link_leads_to_the_file_whose_owner_counts(write: Write, tmp_path: Path) -> None:
    path, link = write(TWO_CLIENTS), tmp_path / "link.yaml"
    link.symlink_to(path)
    assert len(read_site(link).clients) == 2
    path.chmod(0o666)
    with pytest.raises(AccessDenied):
        read_site(link)


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_site(tmp_path / "broker.yaml")


def test_a_directory_or_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is no plain file"):
            read_site(path)


def test_without_pyyaml_the_extra_is_named(write: Write) -> None:
    code = (
        "import sys\nsys.modules['yaml'] = None\nfrom pathlib import Path\n"
        "from pyhub.errors import MissingExtra\n"
        "from pyhub.hub.broker.allow_list import AllowList\n"
        "assert b'x' in AllowList('x', None)\n"
        "try:\n    AllowList('x', Path(sys.argv[1]))\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, write("{}")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "needs PyYAML" in done.stdout
    assert "pip install 'pyhub[site]'" in done.stdout
