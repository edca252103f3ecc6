# SPDX-License-Identifier: Apache-2.0
"""Whose packets are masqueraded, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from towpath.model.kinds import Flag, Integer, PortRange, Prefix, Prefixes, Word
from towpath.model.kinds.patterns import DevicePatterns, may_match_both
from towpath.model.kinds.prefixes import fewest
from towpath.model.kinds.translation import PortSpan
from towpath.model.service import PYDANTIC
from towpath.model.snat import MAX_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.model.decode import Findings, Tree
    from towpath.model.problems import FieldPath

_PORTS = PortRange(61000, 65535)
"""Above what the kernel gives to sockets unless told otherwise (net.ipv4.ip_local_port_range)."""

MASQUERADE_DEVICES = "masquerade_devices"
"""Of a source that knows pods' prefixes: the key that has a rule made of them."""
MASQUERADE_DEVICES = "masquerade_devices"
"""Of a source that knows pods' prefixes: the key that has a rule made of them."""
_DEPENDENT, _INDEPENDENT = "endpoint-dependent", "endpoint-independent"
Independence = Literal["endpoint-dependent", "endpoint-independent"]
INDEPENDENCE = Word(_DEPENDENT, _INDEPENDENT)


@dataclass(frozen=True, slots=True)
class Rule:
    """Pods whose packets get an address of the node's when they leave it."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    devices: Annotated[tuple[str, ...], DevicePatterns()]
    """Devices by which the pods' packets come in; ``veth*`` stands for all that begin so."""
    prefixes: Annotated[tuple[Prefix, ...], Prefixes()]
    """The pods' addresses. Other sources are left alone."""
    exclude: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Destinations that are left alone, besides all rules' own prefixes."""


@dataclass(frozen=True, slots=True)
class Section:
    """Masquerade of pods. ``masquerade`` in the configuration."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    rules: tuple[Rule, ...]
    """Whose packets, and by which devices they come in."""
    ports: Annotated[PortRange, PortSpan()] = _PORTS
    """Ports that flows get: outside net.ipv4.ip_local_port_range and ``snat.ports``."""
    mapping: Annotated[Independence, INDEPENDENCE] = "endpoint-dependent"
    """endpoint-independent: a pod's socket has one port for all remotes (RFC 4787), of which there
    are fewer then. endpoint-dependent: one port serves many pods, by their remotes."""
    filtering: Annotated[Independence, INDEPENDENCE] = "endpoint-dependent"
    """endpoint-independent: whoever sends to a pod's port reaches it, and pods reach each other by
    it. Needs the mapping to be so as well."""
    unsolicited: Annotated[Literal["drop", "pass"], Word("drop", "pass")] = "drop"
    """What is done with packets to the ports that are nobody's answer."""
    through_stack: Annotated[bool, Flag()] = False
    """Whether packets go through the kernel's stack, so that netfilter's rules see them."""
    direct: Annotated[bool, Flag()] = True
    """Whether answers are put straight into the namespaces of pods, past what is at the egress of
    their devices on the node, such as limits of bandwidth. Not at devices of ``socket.packets``."""
    flows: Annotated[int, Integer(1024, 1 << 24)] = 524288
    """Flows at one time, 73 bytes each."""
    rate: Annotated[int, Integer(1000, 1 << 30)] = 200000
    """New flows a second that each CPU translates at most. The rest is dropped: a pod's flood
    mustn't take all ports, nor all time."""
    tcp_timeout: Annotated[int, Integer(60, MAX_TIMEOUT)] = 7440
    """Seconds that an established TCP connection without packets is remembered (RFC 5382)."""
    udp_timeout: Annotated[int, Integer(10, MAX_TIMEOUT)] = 180
    """Seconds that a UDP flow with packets both ways is remembered after the last of them."""

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Those of all rules."""
        return tuple(prefix for rule in self.rules for prefix in rule.prefixes)


class SourcedRules(NamedTuple):
    """What a source has told, besides the configuration."""

    devices: tuple[str, ...] = ()
    """By which packets of this node's pods come in; none: no rule is made of them."""
    prefixes: tuple[Prefix, ...] = ()
    """Of this node's pods."""
    exclude: tuple[Prefix, ...] = ()
    """Destinations that all rules leave alone."""

    def added(self, section: Section) -> Section:
        """Return a section with what this says."""
        rules = [
            replace(rule, exclude=fewest((*(rule.exclude or ()), *self.exclude)) or None)
            for rule in section.rules
        ]
        mine = [each for each in self.prefixes if not _is_taken(each, self.devices, rules)]
        if self.devices and mine:
            rules.append(Rule(self.devices, tuple(mine), self.exclude or None))
        return replace(section, rules=tuple(rules))


def _is_taken(prefix: Prefix, devices: tuple[str, ...], rules: Iterable[Rule]) -> bool:
    """Whether a rule has some of a prefix already, for packets that come in by such a device."""
    return any(
        may_match_both(one, other)
        for rule in rules
        for one in devices
        for other in rule.devices
        if any(each.version == prefix.version and each.overlaps(prefix) for each in rule.prefixes)
    )


def check(section: Tree, path: FieldPath, found: Findings) -> None:
    """Note what no field shows by itself: rules that overlap, or say nothing."""
    if (section.get("filtering"), section.get("mapping")) == (_INDEPENDENT, _DEPENDENT):
        what = "needs mapping: endpoint-independent; allowed: endpoint-dependent"
        found.add((*path, "filtering"), what)
    rules = section.get("rules")
    if rules is None:
        return
    for number, rule in enumerate(rules):
        if rule is None:
            continue
        if "prefixes" in rule and rule["prefixes"] is None:
            found.add((*path, "rules", number, "prefixes"), "is missing")
        for earlier, other in enumerate(rules[:number]):
            if other is not None and (shared := _shared(other, rule)):
                where = (*path, "rules", number, "prefixes")
                found.add(where, f"{shared}, as rules[{earlier}] has it; allowed: each once")


def check_beside(_: Tree, sections: Mapping[str, Tree | None], found: Findings) -> None:
    """Note that nobody is masqueraded: there is no rule, and no source that makes one."""
    section, source = sections["masquerade"], sections.get("kubernetes") or {}
    rules = (section or {}).get("rules")
    if rules is not None and not rules and not source.get(MASQUERADE_DEVICES):
        what = f"there is none; allowed: at least one rule, or kubernetes.{MASQUERADE_DEVICES}"
        found.add(("masquerade", "rules"), what)


def _shared(one: Tree, other: Tree) -> str:
    """Say what two rules both have, for packets that may come in by one device."""
    pairs = [(a, b) for a in one.get("devices", ()) for b in other.get("devices", ())]
    device = next(((a, b) for a, b in pairs if may_match_both(a, b)), None)
    if device is None:
        return ""
    for prefix in other.get("prefixes") or ():
        for theirs in one.get("prefixes") or ():
            if prefix.version == theirs.version and prefix.overlaps(theirs):
                return f"{prefix} is in a rule for {device[0]} already ({theirs})"
    return ""
