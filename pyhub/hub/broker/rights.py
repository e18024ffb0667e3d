"""Who may do what: roles, and the names that a client's rights reach. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pyhub.names import pattern

__all__ = ["ROLES", "VERBS", "Client", "Role", "Verb", "is_client_name"]

Role: TypeAlias = Literal["viewer", "operator", "producer", "admin"]
# read: see channels and services, state, events. call: "service.command". set: keys of
# the state. publish: topics of events. register: channels. offer: services.
Verb: TypeAlias = Literal["read", "set", "publish", "call", "register", "offer", "administer"]

VERBS: tuple[Verb, ...] = ("read", "set", "publish", "call", "register", "offer", "administer")
ROLES: dict[Role, frozenset[Verb]] = {
    "viewer": frozenset({"read"}),
    "operator": frozenset({"read", "set", "publish", "call"}),
    "producer": frozenset({"read", "set", "publish", "register", "offer"}),
    "admin": frozenset(VERBS),
}

_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def is_client_name(text: str) -> bool:
    """Whether a client may be called so: it becomes a file's name, and stands in logs."""
    return bool(_CLIENT_NAME.fullmatch(text))


@dataclass(frozen=True)
class Client:
    """Who holds a key.

    Attributes
    ----------
    name
        What logs and messages call it: see `is_client_name`.
    role
        What it may do with any name.
    rights
        For verbs that are listed, patterns of names instead of what the role says.
    key
        Its public key, in Z85.
    is_own
        Whether it is the broker's own user.
    """

    name: str
    role: Role
    rights: Mapping[Verb, Sequence[str]]
    key: str = ""
    is_own: bool = field(default=False, compare=False)

    def may(self, verb: Verb, name: str) -> bool:
        """Whether it may do that to what is called `name`."""
        patterns = self.rights.get(verb)
        if patterns is None:
            return verb in ROLES[self.role]
        return any(pattern(each).match(name) for each in patterns)

    def may_any(self, verb: Verb) -> bool:
        """Whether there may be a name to which it may do that."""
        patterns = self.rights.get(verb)
        return verb in ROLES[self.role] if patterns is None else bool(patterns)
