"""Moves numpy frames, with the parameters that belong to them, between programs.

Public names only; the tree of the package is drawn in the README.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from pyhub import errors
from pyhub.awake import cpus_awake
from pyhub.codec import Encoding
from pyhub.datablock import (
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    Header,
    LiveView,
    Notification,
    PinnedFrame,
    Policy,
    Publication,
    ReaderState,
    Wait,
    ZoneUpdateInfo,
)
from pyhub.errors import *  # noqa: F403  their list stands once, in errors.py
from pyhub.names import get_include

if TYPE_CHECKING:
    from pyhub.hub.client.calls import PendingCall
    from pyhub.hub.client.entries import Event, StateEntry
    from pyhub.hub.client.job import Job
    from pyhub.hub.client.service import Service
    from pyhub.hub.message_hub import MessageHub
    from pyhub.hub.protocol import ChannelInfo, ServiceInfo
    from pyhub.hub.runtime import BrokerConfig

# Only programs decide where messages go; the command line is one.
logging.getLogger("pyhub").addHandler(logging.NullHandler())

__version__ = "0.1.0"

# What needs zmq and msgspec, and where it is: loaded on first use, as a program that
# only shares memory needs neither (docs/decisions/0015).
_HUB = {
    "BrokerConfig": "pyhub.hub.runtime",
    "ChannelInfo": "pyhub.hub.protocol",
    "Event": "pyhub.hub.client.entries",
    "Job": "pyhub.hub.client.job",
    "MessageHub": "pyhub.hub.message_hub",
    "PendingCall": "pyhub.hub.client.calls",
    "Service": "pyhub.hub.client.service",
    "ServiceInfo": "pyhub.hub.protocol",
    "StateEntry": "pyhub.hub.client.entries",
}

__all__ = [
    "BrokerConfig",
    "ChannelInfo",
    "DataBlockConsumer",
    "DataBlockProducer",
    "Encoding",
    "Event",
    "Frame",
    "Header",
    "Job",
    "LiveView",
    "MessageHub",
    "Notification",
    "PendingCall",
    "PinnedFrame",
    "Policy",
    "Publication",
    "ReaderState",
    "Service",
    "ServiceInfo",
    "StateEntry",
    "Wait",
    "ZoneUpdateInfo",
    "cpus_awake",
    "get_include",
]
__all__ += errors.__all__


def __getattr__(name: str) -> object:
    if name not in _HUB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_HUB[name]), name))


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
