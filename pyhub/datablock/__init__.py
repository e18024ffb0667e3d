"""DataBlocks: frames in shared memory, each with the parameters that belong to it."""

from pyhub._writing import Publication
from pyhub.datablock.consumer import DataBlockConsumer
from pyhub.datablock.frame import Frame, LiveView
from pyhub.datablock.header import Header
from pyhub.datablock.notice import Notification, ZoneUpdateInfo
from pyhub.datablock.pinned import PinnedFrame
from pyhub.datablock.policy import Policy
from pyhub.datablock.producer import DataBlockProducer
from pyhub.datablock.reader import ReaderState
from pyhub.datablock.waiting import Wait

__all__ = [
    "DataBlockConsumer",
    "DataBlockProducer",
    "Frame",
    "Header",
    "LiveView",
    "Notification",
    "PinnedFrame",
    "Policy",
    "Publication",
    "ReaderState",
    "Wait",
    "ZoneUpdateInfo",
]
