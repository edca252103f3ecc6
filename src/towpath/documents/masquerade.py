# SPDX-License-Identifier: Apache-2.0
"""Source NAT of pods that leave the node."""

from dataclasses import dataclass
from typing import Literal

from towpath.model.kinds import Address, Prefix


@dataclass(frozen=True, slots=True)
class MasqueradeRule:
    """Whose packets are masqueraded."""

    devices: tuple[str, ...]
    """By which they come in; a * at the end stands for whatever follows."""
    prefixes: tuple[Prefix, ...]
    exclude: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class MasqueradeDevice:
    """A device that masquerade's programs are on."""

    name: str
    role: Literal["pods", "out"]
    """pods: pods' packets come in by it; out: they may leave by it."""
    rules: tuple[int, ...]
    """The rules, by their number from 0, that name it."""
    direct: bool
    """Answers are put straight into the namespace of the pod."""
    ethernet: bool


@dataclass(frozen=True, slots=True)
class MasqueradeCounters:
    """Packets since the tables were made."""

    verdicts: dict[str, dict[str, int]]
    """By program (from_pod, to_pod, from_net, to_net) and verdict. Each packet that a program sees
    is counted once by it."""
    bound: int
    """Flows that have begun."""
    bytes: dict[str, int]
    """Of translated packets, by program."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Masquerade of pods."""

    rules: tuple[MasqueradeRule, ...]
    ports: str
    """That flows get, such as 61000-65535."""
    mapping: str
    through_stack: bool
    devices: tuple[MasqueradeDevice, ...]
    sources: tuple[Address, ...]
    """The node's addresses that packets may leave from."""
    ports_in_use: tuple[int, ...]
    """Of the range: by sockets of the node; no new flow gets them."""
    flows: int
    capacity: int
    """Flows that there is room for."""
    counters: MasqueradeCounters
    troubles: tuple[str, ...]
    """What isn't as it should be."""


@dataclass(frozen=True, slots=True)
class MasqueradedFlow:
    """A pod's flow, and what it was translated to."""

    protocol: str
    """tcp, udp, icmp or sctp."""
    client: Address
    client_port: int
    """Of icmp: the identifier."""
    source: Address
    """The node's address that the remote sees."""
    port: int
    """And the port."""
    remote: Address
    remote_port: int
    state: str
    """new: nothing has come back yet, or the pod has sent nothing since; established; closing."""
    idle_seconds: float
    """Since the last packet of either side."""


@dataclass(frozen=True, slots=True)
class MasqueradedFlows:
    """Some of the flows."""

    flows: tuple[MasqueradedFlow, ...]
    more: bool
    """There are more than were asked for."""
