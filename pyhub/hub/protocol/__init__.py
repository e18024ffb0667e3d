"""The messages between programs and the broker, by subject. Does no I/O.

docs/reference/hub-protocol.md has them for who writes a client in another language.
"""

from pyhub.hub.protocol import channels, events, fields, framing, programs, services, state
from pyhub.hub.protocol.channels import *  # noqa: F403  each list stands once, in its module
from pyhub.hub.protocol.events import *  # noqa: F403
from pyhub.hub.protocol.fields import *  # noqa: F403
from pyhub.hub.protocol.framing import *  # noqa: F403
from pyhub.hub.protocol.programs import *  # noqa: F403
from pyhub.hub.protocol.services import *  # noqa: F403
from pyhub.hub.protocol.state import *  # noqa: F403

__all__ = []
for _module in (channels, events, fields, framing, programs, services, state):
    __all__ += _module.__all__
