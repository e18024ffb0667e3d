"""What `ls` and `info` tell of a channel."""

from __future__ import annotations

from pyhub.errors import PyhubError
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.protocol import ChannelInfo
from pyhub.hub.runtime import BrokerConfig
from pyhub.monitor.survey import ChannelState

__all__ = ["as_dict", "known_channels", "known_readers", "losses"]


def known_channels() -> dict[str, ChannelInfo] | None:
    """Ask the broker which channels there are, by name; None: there is no broker."""
    try:
        with MessageHub(BrokerConfig(autostart=False, timeout_s=2.0, name="pyhub")) as hub:
            return {channel.name: channel for channel in hub.channels()}
    except (PyhubError, OSError):
        return None


def known_readers() -> dict[str, int] | None:
    """Ask the broker how many readers each channel has; None: there is no broker."""
    known = known_channels()
    return None if known is None else {name: info.n_readers for name, info in known.items()}


def as_dict(state: ChannelState, readers: dict[str, int] | None) -> dict[str, object]:
    """Return `state` as JSON has it; sizes in bytes, times in seconds."""
    found: dict[str, object] = {"name": state.name, "state": state.state}
    if state.header is not None:
        found |= state.header._asdict() | {"dtype": str(state.header.dtype)}
    found |= {
        "timestamp_ns": state.timestamp_ns,
        "rate_hz": round(state.rate_hz, 3),
        "age_s": state.age_s,
        "n_readers": None if readers is None else readers.get(state.name, 0),
        "admitted": [
            reader._asdict() | {"is_stalling": reader.name in state.stalling}
            for reader in state.admitted
        ],
    }
    return found | ({"problem": state.problem} if state.problem else {})


def losses(state: ChannelState) -> list[str]:
    """Say what readers cost the channel: the waits now, and the frames dropped so far."""
    lines = [
        f"{state.name}: the producer waits for reader {reader.name!r} (pid {reader.pid}), "
        f"{state.stalling[reader.name]:.0%} of the time"
        for reader in state.admitted
        if reader.name in state.stalling
    ]
    if state.header is not None and state.header.n_dropped:
        who = max(state.admitted, key=lambda reader: reader.n_dropped, default=None)
        for_whom = (
            f", most for reader {who.name!r} (pid {who.pid})" if who and who.n_dropped else ""
        )
        lines.append(f"{state.name}: {state.header.n_dropped} frames dropped so far{for_whom}")
    return lines
