"""What one end is willing to take, and how long it is willing to wait."""

import re
from dataclasses import dataclass
from typing import Final

from .errors import LocalProtocolError

MIN_FRAME: Final = 16 * 1024
MAX_FRAME: Final = 1 << 20
MIN_CONTROL: Final = 1024
MAX_CONTROL: Final = 64 * 1024
MIN_WINDOW: Final = 16 * 1024
MAX_WINDOW: Final = 1 << 40
MAX_STREAMS: Final = 1 << 20
MAX_FEATURES: Final = 32
MAX_FEATURE: Final = 64
is_feature: Final = re.compile(rf"[a-z0-9._-]{{1,{MAX_FEATURE}}}").fullmatch


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one end. The seconds are its own affair and never travel.

    max_frame: largest DATA payload it accepts, 16 KiB–1 MiB (bytes).
    max_control: largest control body it accepts, 1–64 KiB (bytes).
    window: how many DATA bytes it leaves unacknowledged as a sender, from 16 KiB on; the peer acknowledges
        at least every quarter of it.
    max_streams: how many streams the peer may have open at a time.
    features: names of optional features; one is in force when both ends list it.
    handshake_seconds, silence_seconds, ack_seconds: without a handshake, any sign of life, or progress of
        acknowledgements for so long, the peer is given up. ping_seconds: idle time before a keep-alive.

    Raises LocalProtocolError for a value out of range.
    """

    max_frame: int = 1 << 20
    max_control: int = 16 * 1024
    window: int = 8 << 20
    max_streams: int = 256
    features: tuple[str, ...] = ()
    handshake_seconds: float = 10.0
    ping_seconds: float = 15.0
    silence_seconds: float = 45.0
    ack_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_frame", self.max_frame, MIN_FRAME, MAX_FRAME),
            ("max_control", self.max_control, MIN_CONTROL, MAX_CONTROL),
            ("window", self.window, MIN_WINDOW, MAX_WINDOW),
            ("max_streams", self.max_streams, 0, MAX_STREAMS),
            ("number of features", len(self.features), 0, MAX_FEATURES),
        ):
            if not low <= value <= high:
                raise LocalProtocolError(f"{name} is {value}; it must be {low} to {high}")
        for feature in self.features:
            if not is_feature(feature):
                raise LocalProtocolError(f"feature {feature!r} must be 1 to {MAX_FEATURE} of a-z, 0-9, . _ -")
        for name in ("handshake_seconds", "ping_seconds", "silence_seconds", "ack_seconds"):
            if not getattr(self, name) > 0:
                raise LocalProtocolError(f"{name} must be more than 0 seconds")
