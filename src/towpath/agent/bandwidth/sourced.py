# SPDX-License-Identifier: Apache-2.0
"""Limits that a source has told: kept in a file, for the time until the next agent is told them."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from towpath.agent.told import Told
from towpath.model.bandwidth import Group, Pod, Sourced

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model import Config

FILE = "bandwidth-sourced.json"


def has_pod_limits(config: Config) -> bool:
    """Whether there is a source that tells limits."""
    section: Any = config.sections.get("kubernetes")
    return section is not None and section.pod_limits


class SourcedLimits:
    """Reads and writes them. ``wanted``: whether anybody tells any; else what is there goes."""

    def __init__(self, directory: Path, *, wanted: bool) -> None:
        self._file = Told(directory / FILE)
        self.found = Sourced()
        if wanted:
            self.found = self._file.read(_read) or Sourced()
        else:
            self._file.forget()

    def put(self, sourced: Sourced) -> None:
        """Keep these, whole or not at all. AgentError."""
        if sourced != self.found:
            self._file.write(_written(sourced))
            self.found = sourced


def _written(sourced: Sourced) -> dict[str, Any]:
    pods = [
        {name: value for name, value in asdict(each).items() if value is not None}
        | {"addresses": [str(address) for address in each.addresses or ()]}
        for each in sourced.pods
    ]
    return {
        "owner": sourced.owner,
        "pods": pods,
        "groups": [asdict(each) for each in sourced.groups],
    }


def _read(found: Any) -> Sourced:
    pods = (
        Pod(**each | {"addresses": tuple(map(ip_address, each["addresses"]))})
        for each in found["pods"]
    )
    return Sourced(found["owner"], tuple(pods), tuple(Group(**each) for each in found["groups"]))
