# SPDX-License-Identifier: Apache-2.0
"""Where programs of cgroups run, in an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response  # noqa: TC002 -- read by FastAPI
from prometheus_client.core import GaugeMetricFamily

from towpath.agent.http.response import answer
from towpath.agent.parts import Part
from towpath.api import documents
from towpath.datapath.cgroup.follower import Follower
from towpath.datapath.cgroup.report import report
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.documents import CgroupRoot
    from towpath.model.cgroup import Section


def start(given: Given) -> Part:
    """Find the cgroup, and prove that programs run there. What can't be is trouble, no more."""
    return Cgroup(given)


def forget(_: Given) -> None:
    """Nothing of it outlives an agent."""


def cgroup_metrics(*, proven: bool) -> Iterator[Metric]:
    """Metrics of cgroups."""
    yield GaugeMetricFamily(
        "towpath_cgroup_proven",
        "1 if programs of cgroups were seen to run for a process of the node, 0 if not.",
        value=int(proven),
    )


class Cgroup(Part):
    """Knows where programs of cgroups run."""

    name = "cgroup"

    def __init__(self, given: Given) -> None:
        section: Section = given.config.sections[self.name]
        self._follower = Follower(section.path)

    def found(self) -> CgroupRoot:
        """All that there is to say."""
        return report(self._follower)

    @property
    def trouble(self) -> str | None:
        """Why programs weren't seen to run."""
        return self._follower.trouble

    def summary(self) -> str:
        """Where, and whether that is proven."""
        proof = self._follower.proof
        try:
            where = self._follower.asked(lambda root: f"{root.name} ({root.why})")
        except KernelError:
            return f"not proven: {proof.why}"
        return f"{where}: {'proven' if proof.proven else f'not proven: {proof.why}'}"

    def metrics(self) -> Iterable[Metric]:
        """Whether it is proven."""
        return cgroup_metrics(proven=self._follower.proof.proven)

    def routes(self) -> Iterable[APIRouter]:
        """Reading it."""
        router = APIRouter(tags=["cgroups"])

        @router.get("/cgroup", response_model=documents.CgroupRoot)
        def cgroup() -> Response:
            """Where programs of cgroups are attached, whether they run, and all that run there."""
            return answer(self.found())

        return (router,)

    def close(self) -> None:
        """Let go of it."""
        self._follower.close()
