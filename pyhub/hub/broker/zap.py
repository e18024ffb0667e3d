"""Who may speak to the broker: ZeroMQ's authentication requests, answered.

libzmq asks over an inproc socket for each connection, and waits for the
answer; the broker answers from its own loop. So it fails closed in every
state: no answer, no connection. Frames as in rfc.zeromq.org/spec/27.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container

from zmq.utils import z85

__all__ = ["ZAP_DOMAIN", "ZAP_ENDPOINT", "decide"]

_log = logging.getLogger("pyhub.hub")

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
# Must not be empty: with an empty one libzmq lets everybody in when nobody
# answers, ZMQ_ZAP_ENFORCE_DOMAIN or not.
ZAP_DOMAIN = b"pyhub"


def decide(
    request: list[bytes], allowed: Container[bytes], on_refusal: Callable[[str, str, str], None]
) -> list[bytes]:
    """Return the reply to an authentication request; never raises.

    `allowed` holds public keys in Z85; `on_refusal` is told who, from where and
    why. Refusals are 400 or 500: after 300 a
    client may never try again (libzmq #2329).
    """
    version, request_id = b"1.0", b""
    try:
        version, request_id, domain, address, _identity, mechanism, *credentials = request
        if version == b"1.0" and domain == ZAP_DOMAIN and mechanism == b"CURVE":
            (key,) = credentials
            public = z85.encode(key)
            if public in allowed:
                return [version, request_id, b"200", b"OK", public, b""]
        who = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else "nobody"
        why = f"mechanism {mechanism.decode(errors='replace')}, domain {domain!r}: not allowed"
        on_refusal(who, address.decode(errors="replace"), why)
        return [version, request_id, b"400", b"not allowed", b"", b""]
    except Exception:  # whatever it was: no
        _log.exception("refused a connection whose request could not be read")
        return [b"1.0", request_id, b"500", b"internal error", b"", b""]
