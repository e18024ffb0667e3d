"""What a site's broker is told: a YAML file of endpoints and of clients with their rights."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from pyhub.errors import AccessDenied, ConfigError, MissingExtra
from pyhub.hub.broker.rights import ROLES, VERBS, Client, Role, Verb, is_client_name
from pyhub.hub.keys import is_public_key

__all__ = ["LOCAL_NAME", "Site", "example", "read_site"]

# What the broker's own user is called, who needs no line in the file.
LOCAL_NAME = "local"
_MAX_BYTES = 2**20
# The file needs four levels. More, and PyYAML's C code runs out of stack: no exception.
_MAX_DEPTH = 20

_EXAMPLE = """\
# What a site's broker is told: pyhub broker --config broker.yaml
#
# Check it with: pyhub config check broker.yaml. A running broker reads `clients`
# again when this file changes; the rest takes a restart. Nobody but its owner
# may be able to write it: chmod 644.

# Where broker.json, keys, state.db and audit.log lie; a directory of the broker's
# user alone. Left out: that user's own.
runtime_dir: /run/pyhub

# Where programs of other hosts find the broker: tcp://ADDRESS:PORT, and * for
# all addresses. Programs of its own user need none: they use the runtime directory.
listen: ["tcp://*:5570"]

# The broker's key pair, made by `pyhub keygen broker`: programs of other hosts know
# its public half, so that it must outlive a reboot, which empties /run. Left out:
# broker.key in the runtime directory, made when it is missing.
key_file: /etc/pyhub/broker.key

# Who may connect, beside the broker's own user. `pyhub keygen NAME` makes a key
# pair and prints the lines for this list. Roles, and what they may do:
#   viewer    read
#   operator  read, set, publish, call
#   producer  read, set, publish, register, offer
#   admin     all of these, and administer
# `rights` says for single verbs which names they reach, instead of what the role
# says; * stands for any text, dots and slashes included, and [] for no name at all.
clients:
  - name: hall-display
    key: "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"  # public; yours will differ
    role: viewer
  - name: alignment-gui
    key: "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    role: operator
    rights:
      call: ["cam1.*"]  # service.command
      set: ["cam1/*"]  # keys of the state
"""


@dataclass(frozen=True)
class Site:
    """What a configuration file says.

    Attributes
    ----------
    path
        The file.
    runtime_dir
        Where broker.json, keys, state and logs lie; None: the user's own.
    listen
        Endpoints beside the socket in the runtime directory.
    key_file
        The broker's key pair; None: in the runtime directory.
    clients
        Who may connect, by public key in Z85.
    """

    path: Path
    runtime_dir: Path | None
    listen: tuple[str, ...]
    key_file: Path | None
    clients: Mapping[bytes, Client]


def read_site(path: Path) -> Site:
    """Return what the configuration file says.

    Raises
    ------
    ConfigError
        It says what cannot be meant; the message names the place.
    AccessDenied
        Others may write it.
    MissingExtra
        PyYAML is not installed.
    OSError
        It cannot be read.
    """
    path = path.absolute()
    text = _read_text(path)
    _check_yaml(path, text)
    try:
        said = msgspec.yaml.decode(text, type=_SiteFile)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _misfit(path, str(error)) from error
    clients: dict[bytes, Client] = {}
    places: dict[str, str] = {LOCAL_NAME: "the broker's own user"}
    for number, entry in enumerate(said.clients or ()):
        place = f"clients[{number}]"
        _check_client(path, place, entry, places)
        places |= {entry.name: place, entry.key: place}
        clients[entry.key.encode()] = Client(entry.name, entry.role, entry.rights or {}, entry.key)
    return Site(
        path=path,
        runtime_dir=_absolute(path, "runtime_dir", said.runtime_dir),
        listen=tuple(_endpoints(path, said.listen or [])),
        key_file=_absolute(path, "key_file", said.key_file),
        clients=clients,
    )


def example() -> str:
    """Return a configuration file to begin with, its comments included."""
    return _EXAMPLE


_Pattern: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    key: str
    role: Role
    rights: dict[Verb, list[_Pattern]] | None = None


class _SiteFile(msgspec.Struct, forbid_unknown_fields=True):
    # None: the word stands there, and all below it is commented out.
    runtime_dir: str | None = None
    listen: list[str] | None = None
    key_file: str | None = None
    clients: list[_Entry] | None = None


def _read_text(path: Path) -> str:
    # NONBLOCK: a pipe of that name shall not keep us waiting for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is no plain file.\n  Name the YAML file itself.")
        if status.st_uid not in (0, os.geteuid()) or mode & 0o022:
            raise AccessDenied(
                f"the configuration {path} has mode {mode:04o} and owner {status.st_uid}; "
                "others could let themselves in.\n"
                f"  It must belong to root or to the broker's user: chown root {path}; "
                f"chmod 644 {path}"
            )
        content = os.read(descriptor, _MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_BYTES:
        raise ConfigError(
            f"{path} has more than {_MAX_BYTES} bytes.\n"
            "  No list of clients is that long: is it another file?"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: line {line} is no UTF-8 text.\n  Save the file as UTF-8."
        ) from error


def _check_yaml(path: Path, text: str) -> None:
    """Refuse what PyYAML reads without a word, or not at all."""
    yaml = _load_yaml()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _MAX_DEPTH or getattr(event, "tag", None):
                line = event.start_mark.line + 1
                what = "brackets in brackets" if depth > _MAX_DEPTH else f"the tag {event.tag!r}"
                raise ConfigError(
                    f"{path}: line {line} has {what}, which mean nothing here.\n"
                    "  See what may stand there: pyhub config example"
                )
        _check_keys(path, yaml.compose(text, loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "the text" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"{path}: {place} is no YAML: {problem}.\n"
            "  Look there and above: at the indentation, and for quotes around each key."
        ) from error


def _load_yaml() -> Any:
    """Import PyYAML, on use: it is an extra."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra(
            f"a broker's configuration needs PyYAML, which cannot be imported ({error}).\n"
            "  pip install 'pyhub[site]', or conda install pyyaml."
        ) from error
    return yaml


def _check_keys(path: Path, root: Any) -> None:
    """Refuse a name that stands twice in one mapping: PyYAML takes the last one."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):
            continue  # an alias, or a scalar
        seen.add(id(node))
        names: set[str] = set()
        for child in node.value:
            key, value = child if isinstance(child, tuple) else (None, child)
            nodes.append(value)
            if key is None:
                continue
            line = f"{path}: line {key.start_mark.line + 1}"
            if not isinstance(key.value, str):
                raise ConfigError(f"{line} has brackets in the place of a name.\n  Quote it.")
            if key.value in names:
                raise ConfigError(
                    f"{line} has {key.value!r} for the second time in one place.\n"
                    "  Leave one of them."
                )
            names.add(key.value)


def _misfit(path: Path, text: str) -> ConfigError:
    """Return msgspec's error in the words of the file: place, what was found, what may be."""
    found = re.fullmatch(r"(.*) - at (`.*`)", text, re.DOTALL)
    problem, place = found.groups() if found else (text, "")
    place = re.sub(r"`key` in |[`$]", "", place).removeprefix(".")
    if place.endswith(".role"):
        remedy = f"A role is one of {', '.join(ROLES)}."
    elif re.search(r"\.rights\b", place):
        remedy = f"For each of {', '.join(VERBS)}: a list of at most 255 letters each."
    elif re.fullmatch(r"clients\[\d+\]", place):
        remedy = f"A client has {', '.join(_Entry.__struct_fields__)}."
    elif not place:
        remedy = f"The file has {', '.join(_SiteFile.__struct_fields__)}."
    else:
        remedy = "See what may stand there: pyhub config example"
    problem = problem.replace("`", "'")[:200]  # it shows a whole value
    return ConfigError(f"{path}: {place or 'the file'}: {problem}.\n  {remedy}")


def _check_client(path: Path, place: str, entry: _Entry, places: Mapping[str, str]) -> None:
    if not is_client_name(entry.name):
        raise ConfigError(
            f"{path}: {place}.name is {entry.name!r}.\n"
            "  Use 1 to 64 letters, digits, '.', '_', '-' and '@', the first one a letter or digit."
        )
    # What stands there is not shown: it might be a secret key.
    if not is_public_key(entry.key):
        raise ConfigError(
            f"{path}: {place}.key, of {entry.name!r}, is no public key: {len(entry.key)} "
            "characters.\n  It has 40 characters of Z85, in quotes: the line in the .pub file "
            "that `pyhub keygen` wrote."
        )
    for what, value in (("name", entry.name), ("key", entry.key)):
        if value in places:
            raise ConfigError(
                f"{path}: {place}.{what} is that of {places[value]} too ({entry.name!r}).\n"
                "  Each client has a name and a key pair of its own: pyhub keygen NAME"
            )


def _absolute(path: Path, place: str, value: str | None) -> Path | None:
    if value is not None and (not value.startswith("/") or "\0" in value):
        raise ConfigError(
            f"{path}: {place} is {value!r}.\n"
            "  Write the whole path, from / on: a service starts in another directory."
        )
    return None if value is None else Path(value)


def _endpoints(path: Path, listen: list[str]) -> Iterator[str]:
    for number, endpoint in enumerate(listen):
        place = f"listen[{number}]"
        if not _is_endpoint(endpoint):
            raise ConfigError(
                f"{path}: {place} is {endpoint!r}.\n"
                "  Write tcp://ADDRESS:PORT, such as tcp://*:5570, tcp://192.168.1.2:5570 or "
                "tcp://[::1]:5570:\n  an address of this host, no name; a port from 1 to 65535, or "
                "* for any free one."
            )
        if endpoint in listen[:number]:
            raise ConfigError(f"{path}: {place} is {endpoint!r} again.\n  Leave one of them.")
        yield endpoint


def _is_endpoint(text: str) -> bool:
    found = re.fullmatch(r"tcp://(?:([0-9.]+|\*)|\[([0-9a-fA-F:.]+)\]):([0-9]{1,5}|\*)", text)
    if not found:
        return False
    v4, v6, port = found.groups()
    try:
        if v6:
            ipaddress.IPv6Address(v6)
        elif v4 != "*":
            ipaddress.IPv4Address(v4)
    except ValueError:
        return False
    return port == "*" or 1 <= int(port) <= 65535
