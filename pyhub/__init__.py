"""Moves numpy frames, with the parameters that belong to them, between programs.

Public names only; the tree of the package is drawn in the README.
"""

import logging

from pyhub import errors
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
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.protocol import ChannelInfo
from pyhub.hub.runtime import BrokerConfig
from pyhub.names import get_include

# Only programs decide where messages go; the command line is one.
logging.getLogger("pyhub").addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "BrokerConfig",
    "ChannelInfo",
    "DataBlockConsumer",
    "DataBlockProducer",
    "Encoding",
    "Frame",
    "Header",
    "LiveView",
    "MessageHub",
    "Notification",
    "PinnedFrame",
    "Policy",
    "Publication",
    "ReaderState",
    "Wait",
    "ZoneUpdateInfo",
    "get_include",
]
__all__ += errors.__all__
