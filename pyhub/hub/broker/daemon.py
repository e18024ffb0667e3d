"""A broker as a process of its own; arguments: DIRECTORY LINGER_S (see runtime.py)."""

from __future__ import annotations

import logging
import os
import signal
import sys

# Whoever had the directory before may still be leaving it.
_PATIENCE_S = 5.0


def main() -> None:
    """Run a broker in the background of whoever started it."""
    if os.fork():
        os._exit(0)  # the starter waits for this half only
    # zmq is imported after the fork: its threads would not survive one.
    from pyhub.hub.broker.server import Broker
    from pyhub.hub.runtime import RuntimeDirectory

    os.chdir("/")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    directory, linger_s = sys.argv[1:]
    broker = Broker(RuntimeDirectory(directory), float(linger_s))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: broker.stop())
    broker.run(_PATIENCE_S)
