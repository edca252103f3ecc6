# SPDX-License-Identifier: Apache-2.0
"""The part of an agent that limits pods."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from towpath.agent.bandwidth.metrics import bandwidth_metrics
from towpath.agent.bandwidth.routes import bandwidth_routes
from towpath.agent.bandwidth.sourced import SourcedLimits, has_pod_limits
from towpath.agent.bandwidth.store import Changes
from towpath.agent.errors import ConflictError, InvalidError, NotFoundError
from towpath.agent.parts import Part
from towpath.datapath.bandwidth.follower import Follower
from towpath.datapath.bandwidth.report import report
from towpath.datapath.bandwidth.survival import survival
from towpath.datapath.bandwidth.wanted import address_of
from towpath.kernel.net import link_state
from towpath.model import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import APIRouter
    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.datapath.bandwidth.node import Node
    from towpath.documents import Bandwidth as Document
    from towpath.model import Config
    from towpath.model.bandwidth import BbrMode, LimitChange, Section, Sourced

_CHANGEABLE = ("pods", "groups", "horizon", "bbr")
"""Keys of the section that can change while the agent runs."""


def refused_bbr(section: Section, mode: str) -> str:
    """Say why pods can't have BBR; "": they can."""
    if mode != "on" or not section.direct or survival().tcp:
        return ""
    return (
        "this kernel resets times of departure between namespaces, and with direct: true nobody"
        " else paces BBR; allowed: direct: false, with which the pod's kernel paces it"
    )


def beside(config: Config) -> tuple[str, ...]:
    """Say what of the rest of the configuration doesn't go with limits."""
    section: Section = config.sections[Bandwidth.name]
    masquerade = config.sections.get("masquerade")
    if masquerade is None or not masquerade.direct:
        return ()
    ingress = [each.ingress for each in section.pods] + [each.ingress for each in section.groups]
    if not any(ingress):
        return ()
    told = "masquerade puts answers into pods past the limits of what they receive"
    return (f"{told}; masquerade.direct: false has them limited",)


class Bandwidth(Part):
    """Limits pods."""

    name = "bandwidth"
    fixed = ()  # apply() says what can't change

    def __init__(self, given: Given) -> None:
        self._section: Section = given.config.sections[self.name]
        self._writer = given.writer
        self._beside = beside(given.config)
        self._changes = Changes(given.state)
        self._check_bbr(self._section)
        self._sourced = SourcedLimits(given.state, wanted=has_pod_limits(given.config))
        self._follower = Follower(
            self._effective(), given.pins, self._changes.limits, self._sourced.found
        )
        given.shared.limits = self

    def _effective(self) -> Section:
        """The section, with the mode of BBR that was set since."""
        bbr: Any = self._changes.bbr
        return replace(self._section, bbr=bbr) if bbr else self._section

    def _check_bbr(self, section: Section) -> None:
        if why := refused_bbr(section, self._changes.bbr or section.bbr):
            raise InvalidError([Problem(why, "bandwidth.bbr")])

    # ---- Changes ---------------------------------------------------------------------------------

    def apply(self, config: Config) -> None:
        """Go by other limits. Devices, and what the programs are loaded with, need a restart."""
        section: Section = config.sections[self.name]
        kept = {name: getattr(self._section, name) for name in _CHANGEABLE}
        if replace(section, **kept) != self._section:
            what = f"only {', '.join(_CHANGEABLE)} can change while the agent runs; restart it"
            raise InvalidError([Problem(what, self.name)])
        self._check_bbr(section)
        self._beside = beside(config)
        before, self._section = self._section, section
        try:
            self._follower.replace(self._effective(), self._changes.limits)
        except Exception:
            self._section = before
            raise

    def set_limit(self, name: str, change: LimitChange) -> None:
        """Give a pod, group, device or address another limit. RequestError: it can't have it."""
        given = {field: each for field, each in asdict(change).items() if each is not None}
        if not given:
            raise InvalidError("no limit is given; allowed: egress, ingress and others")
        self._follower.asked(lambda node: _check_target(node, name))
        limits = dict(self._changes.limits)
        limits[name] = dict(limits.get(name, {})) | given
        if self._is_unknown(name) and not (limits[name].keys() & {"egress", "ingress"}):
            raise InvalidError([Problem("has no rate; allowed: egress, ingress or both", name)])
        self._keep(limits)

    def delete_limit(self, name: str) -> None:
        """Give it back what it has by the configuration. NotFoundError: nothing was set."""
        limits = dict(self._changes.limits)
        if limits.pop(name, None) is None:
            raise NotFoundError(f"nothing was set for {name}")
        self._keep(limits)

    def set_bbr(self, mode: BbrMode) -> None:
        """Have BBR in pods' namespaces, or not, or what the node has. InvalidError."""
        if why := refused_bbr(self._section, mode):
            raise InvalidError([Problem(why, "mode")])
        self._changes.put(self._changes.limits, mode)
        self._follower.replace(self._effective(), self._changes.limits)

    def _is_unknown(self, name: str) -> bool:
        pods = (*self._section.pods, *self.sourced.pods)
        groups = (*self._section.groups, *self.sourced.groups)
        return name not in {*(each.name for each in pods), *(each.name for each in groups)}

    def _keep(self, limits: Mapping[str, Mapping[str, Any]]) -> None:
        """On disk first: what is in force outlives the agent."""
        before = self._changes.limits
        self._changes.put(limits, self._changes.bbr)
        try:
            self._follower.replace(self._effective(), limits)
        except Exception:
            self._changes.put(before, self._changes.bbr)
            raise

    # ---- Limits of a source ----------------------------------------------------------------------

    @property
    def sourced(self) -> Sourced:
        """What was told last, by whatever agent. For any thread."""
        return self._sourced.found

    def limit_pods(self, sourced: Sourced) -> None:
        """Have these limits of a source, on the writer's thread. AgentError, KernelError."""
        self._sourced.put(sourced)
        self._follower.replace_sourced(sourced)

    def missing(self) -> frozenset[str]:
        """Pods that no device leads to. For any thread."""
        return self._follower.asked(lambda node: frozenset(node.located.missing))

    # ---- What it says ----------------------------------------------------------------------------

    def found(self) -> Document:
        """All that there is to say."""
        told, notes = self._follower.asked(lambda node: (report(node), node.notes))
        return replace(told, troubles=(*self._follower.troubles, *notes, *self._beside))

    @property
    def trouble(self) -> str | None:
        """What keeps it from its work."""
        return "; ".join(self._follower.troubles) or None

    def summary(self) -> str:
        """How many limits there are, and how they are kept."""
        found = self._follower.asked(lambda node: (len(node.aggregates), len(node.unpaced)))
        limits = "1 limit" if found[0] == 1 else f"{found[0]} limits"
        policed = f", {found[1]} devices without fq" if found[1] else ""
        told = f"{limits}{policed}"
        return f"{told}; {self._follower.troubles[0]}" if self._follower.troubles else told

    def metrics(self) -> Iterable[Metric]:
        """What was counted."""
        return bandwidth_metrics(self.found())

    def routes(self) -> Iterable[APIRouter]:
        """Reading and changing it."""
        return (bandwidth_routes(self, self._writer),)

    def detach(self) -> None:
        """Take it out of the kernel."""
        self._follower.detach()

    def close(self) -> None:
        """Let go of it: the kernel goes on."""
        self._follower.close()


def _check_target(node: Node, name: str) -> None:
    """Refuse what is nothing, or is in another aggregate already."""
    if any(each.name == name for each in node.aggregates):
        return
    address = address_of(name)
    if address is not None:
        for shared in node.located.by_address.values():
            if address in shared:
                raise ConflictError(f"{address} is in {shared[address]} already")
        return
    index = next((i for i, each in link_state.devices().items() if each.name == name), None)
    if index is None:
        known = ", ".join(sorted(each.name for each in node.aggregates)) or "none"
        raise NotFoundError(f"{name} is no pod, group or device of this node; pods: {known}")
    if index in node.located.owners:
        raise ConflictError(f"device {name} is in {node.located.owners[index]} already")
    if index in node.devices:
        raise ConflictError(f"{name} is a device that pods' packets leave by, and no pod's")
