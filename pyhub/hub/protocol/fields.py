"""What the fields of messages may hold: types with their bounds."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

__all__ = ["Count", "Id", "Lease", "Message", "Name", "Seconds", "Source", "Text", "Topic", "Value"]

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=255)]
# Of channels, services and commands: `check_name` looks at the letters.
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=200)]
# A topic, a state's key, or a pattern of either: at most 255 bytes, no control
# characters. `check_topic` looks at it.
Topic: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
# One value in MessagePack, as pyhub.codec writes it. The broker hands it on unread.
Value: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=48 * 1024)]
# What makes a repeated message the same one: random, so that no two are alike.
Id: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=32)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
# A lease is an offset in a file: anything else, the kernel cannot be asked about.
Lease: TypeAlias = Count
# Who did it: "name (pid@host)". The broker writes it, so that nobody else's can be claimed.
Source: TypeAlias = Text


class Message(msgspec.Struct, tag_field="type", frozen=True):
    """The body of a request, a reply or a push; "type" says which."""
