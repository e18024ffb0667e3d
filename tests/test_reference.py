"""The reference says what the code says: every name, in the words of its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import pyhub
from pyhub.hub.client.events import LogHandler
from pyhub.hub.client.feed import Feed
from pyhub.hub.client.state import State
from pyhub.hub.client.watching import EventFeed, StateFeed
from pyhub.hub.on_any_hub import OnAnyHub, OnAnyHubProperty

REFERENCE = Path(__file__).parents[1] / "docs/reference"
API = (REFERENCE / "api.md").read_text()
ENVIRONMENT = (REFERENCE / "environment.md").read_text()

WITH_TABLE = (
    pyhub.MessageHub,
    pyhub.BrokerConfig,
    pyhub.PendingCall,
    pyhub.Service,
    pyhub.Job,
    State,
    pyhub.StateEntry,
    pyhub.Event,
    Feed,
    LogHandler,
)
WITH_SENTENCE = (StateFeed, EventFeed)

# Public for other parts of the hub, and not for its users.
INTERNAL = {
    "BrokerConfig": {"resolved_endpoint"},
    "PendingCall": {
        "was_sent",
        "give_up",
        "is_wanted",
        "body",
        "on_reply",
        "on_glance",
        "finish",
        "fail",
    },
    "Service": {"put", "offer"},
    "Job": {"cancel"},
    "StateEntry": {"of"},
    "Event": {"of"},
    "Feed": {"put", "drain", "end"},
    "LogHandler": {"emit"},
}
# That the words of a list of attributes say already.
UNSAID = {"key": "Its name.", "topic": "By what name it was told.", "value": "What was told."}

# What a hub may raise, beside errors of frames.
ERRORS = (
    pyhub.BrokerUnreachable,
    pyhub.BrokerRefused,
    pyhub.AccessDenied,
    pyhub.ServiceNotFound,
    pyhub.ServiceDied,
    pyhub.CommandFailed,
    pyhub.CallCancelled,
    pyhub.WaitTimeout,
    pyhub.VersionConflict,
    pyhub.CodecError,
    pyhub.CapacityError,
    pyhub.InvalidName,
    pyhub.ChannelClosed,
    pyhub.SegmentNotFound,
    pyhub.ConfigError,
)


@pytest.mark.parametrize("kind", WITH_TABLE, ids=lambda kind: kind.__name__)
def test_every_public_name_of_a_class_has_its_line(kind: type) -> None:
    said, true = table_of(kind.__name__), table(kind)
    assert said == true, f"in api.md, below {kind.__name__}, paste:\n" + "\n".join(true)


@pytest.mark.parametrize("kind", WITH_TABLE + WITH_SENTENCE, ids=lambda kind: kind.__name__)
def test_every_class_is_told_of_in_its_own_words(kind: type) -> None:
    section = API if kind in WITH_SENTENCE else section_of(kind.__name__)
    assert first_line(kind) in " ".join(section.split())


def test_every_error_of_the_hub_has_its_line() -> None:
    true = [f"| `{kind.__name__}` ({built_in(kind)}) | {first_line(kind)} |" for kind in ERRORS]
    assert table_of("Errors") == true, "in api.md, below Errors, paste:\n" + "\n".join(true)


def test_every_environment_variable_that_the_code_reads_has_its_line() -> None:
    package = Path(pyhub.__file__).parent
    sources = [*package.rglob("*.py"), *package.rglob("*.pyx")]
    read = {
        name
        for path in sources
        for name in re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", path.read_text())
    }
    assert {"PYHUB_RUNTIME_DIR", "PYHUB_KEY_FILE"} <= read
    assert read <= set(re.findall(r"^\| `(\w+)` \|", ENVIRONMENT, flags=re.M))


def test_a_line_that_is_missing_is_noticed() -> None:
    class Job(pyhub.Job):
        def sing(self, loudly: bool = True) -> None:
            """Sing a song."""

    assert "| `sing(loudly=True)` | Sing a song. |" in table(Job)
    assert table_of("Job") != table(Job)


# --- What the page says ---


def section_of(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", API, flags=re.M | re.S)
    assert found, f"api.md has no part {title!r}"
    return found[1]


def table_of(title: str) -> list[str]:
    return [line for line in section_of(title).splitlines() if line.startswith("| `")]


# --- What the code says ---


def table(kind: type) -> list[str]:
    documented = attributes(kind)
    rows = [f"| `{name}` | {text} |" for name, text in documented.items()]
    hidden = INTERNAL.get(kind.__name__, set()) | {
        name for names in documented for name in names.split(", ")
    }
    for name, member in vars(kind).items():
        if not name.startswith("_") and name not in hidden and is_documented(member):
            rows.append(f"| `{name}{arguments(member)}` | {first_line(member)} |")
    return rows


def is_documented(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(
        member, property | classmethod | OnAnyHub | OnAnyHubProperty
    )


def attributes(kind: type) -> dict[str, str]:
    """Return what the docstring says of attributes; of a dataclass, in the order of its fields."""
    _, _, rest = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")
    said: dict[str, str] = {}
    for name, text in re.findall(r"^(\S[^\n]*)\n((?:    [^\n]*(?:\n|\Z))+)", rest, flags=re.M):
        said[name] = in_markdown(" ".join(text.split()))
    if not dataclasses.is_dataclass(kind):
        return said
    apart = {name for names in said for name in names.split(", ")}
    first = {
        field.name: UNSAID[field.name]
        for field in dataclasses.fields(kind)
        if field.name not in apart
    }
    return first | said


def arguments(member: Any) -> str:
    if isinstance(member, property | OnAnyHubProperty):
        return ""
    function = member._method if isinstance(member, OnAnyHub) else inspect.unwrap(member)
    function = function.__func__ if isinstance(function, classmethod) else function
    _, *parameters = inspect.signature(function).parameters.values()
    # A first one that only catches mistakes looks like the star before names.
    parts = ["*" if each.name == "positional" else argument(each) for each in parameters]
    first_named = next(
        (n for n, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), None
    )
    if first_named is not None and "*" not in parts:
        parts.insert(first_named, "*")
    return f"({', '.join(parts)})"


def argument(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def first_line(thing: Any) -> str:
    return in_markdown((inspect.getdoc(thing) or "").splitlines()[0])


def in_markdown(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|")


def built_in(kind: type) -> str:
    return next(
        each.__name__
        for each in kind.__mro__
        if each.__module__ == "builtins" and each is not Exception
    )
