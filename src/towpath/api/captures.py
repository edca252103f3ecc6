# SPDX-License-Identifier: Apache-2.0
"""What the API says of captures."""

from dataclasses import dataclass

from towpath.model.capture import Capture

HEADER = "Towpath-Capture"
"""Of the answer that is a capture's file: the capture's number."""
MEDIA_TYPE = "application/x-pcapng"


@dataclass(frozen=True, slots=True)
class CaptureEntry:
    """A capture that goes on, or one that has ended not long ago."""

    id: int
    capture: Capture
    """What was asked for."""
    started: str
    """When, in UTC."""
    ended: str
    """Why it ended; empty while it goes on."""
    seen: int
    """Packets that the load balancer had meanwhile."""
    matched: int
    """Those that it is for, before sampling."""
    packets: int
    """Those that were captured."""
    frames: int
    """Of these packets: as they came in, as they were sent on, or both."""
    bytes: int
    """Bytes of these frames that were kept."""
    lost: int
    """Frames that came faster than they were read."""
