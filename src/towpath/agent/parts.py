# SPDX-License-Identifier: Apache-2.0
"""What an agent is made of: one part for each capability that is configured.

The module of a capability in this layer has two functions::

    def start(given: Given) -> Part      take over or make what it has in the kernel
    def forget(given: Given) -> None     remove what an earlier agent left that had it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from fastapi import APIRouter
    from prometheus_client.core import Metric

    from towpath.agent.writer import Writer
    from towpath.datapath.neigh.wanted import Wanted
    from towpath.model import Config
    from towpath.model.bandwidth import Sourced
    from towpath.model.masquerade import SourcedRules


class Services(Protocol):
    """The load balancer, to others that balance its services."""

    def sockets(self, cgroup: Any, pins: Path | None = None, **wishes: Any) -> Any:
        """Balance them at sockets: `towpath.datapath.socket.balancer.SocketBalancer`."""

    def tell(self, changed: Callable[[Any], None]) -> None:
        """Have this called after each change, with its Transition, on the writer's thread."""


class Tracking(Protocol):
    """Connections that others translate to services, to sources whose services these were."""

    async def begin(self, *, first: bool) -> None:
        """Services come into force that others may have served; ``first``: these are all."""

    async def settle(self) -> None:
        """They are in force."""

    @property
    def of_pods(self) -> bool:
        """Whether services for this node alone have such connections, too."""


class Limits(Protocol):
    """Bandwidth, to sources that know pods."""

    @property
    def sourced(self) -> Sourced:
        """What was told last, by whatever agent. For any thread."""

    def limit_pods(self, sourced: Sourced) -> None:
        """Have these limits, on the writer's thread. AgentError, KernelError, OSError."""

    def missing(self) -> frozenset[str]:
        """Pods that no device leads to. For any thread."""


class Prefixes(Protocol):
    """Masquerade, to sources that know networks."""

    @property
    def sourced(self) -> SourcedRules:
        """What was told last, by whatever agent. For any thread."""

    def masquerade_pods(self, sourced: SourcedRules) -> None:
        """Go by these as well, on the writer's thread. AgentError, KernelError, OSError."""


@dataclass
class Shared:
    """What parts have for others."""

    renew: Callable[[], None] = lambda: None
    """Have the agent begin anew in its own process, while the datapath goes on. On the event
    loop."""
    services: Services | None = None
    """The load balancer's."""
    tracking: Tracking | None = None
    """Of the load balancer, if others may have served what it is for."""
    limits: Limits | None = None
    """Of bandwidth, if that is configured."""
    prefixes: Prefixes | None = None
    """Of masquerade, if that is configured."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a part is started with."""

    config: Config
    writer: Writer
    """The thread on which everything is changed."""
    pins: Path
    """Where it pins what is to outlive the agent. Nothing has to be there."""
    next_hops: Wanted
    """Where it says which destinations it sends packets to."""
    shared: Shared = field(default_factory=Shared)
    """What it has for others, and others for it."""

    @property
    def state(self) -> Path:
        """A directory that outlives the agent and the machine."""
        return self.config.state.directory


class Part:
    """One capability in a running agent. What is not needed can be left as it is here.

    A change of the configuration is checked (``fixed``), then applied part by part; when one
    refuses, those before it get the configuration that was in force. What a part says of itself
    may be asked for by any thread.
    """

    name: str

    @property
    def fixed(self) -> tuple[str, ...]:
        """Keys of the configuration that can't change while the agent runs: its section."""
        return (self.name,)

    def apply(self, config: Config) -> None:
        """Take over a changed configuration, on the writer's thread.

        An exception of ``errors.REFUSALS`` refuses it; everything is then as before.
        """

    def desired(self) -> object:
        """What the configuration must agree with; another object whenever it has changed.

        A configuration that was refused is tried again then.
        """

    def files(self) -> Mapping[Path, str]:
        """Files of its own that have to stay as they are, and what it means if they don't."""
        return {}

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What goes on in the background, by what messages call it."""
        return {}

    def stop(self) -> None:
        """End what requests are waiting for: the agent is about to go."""

    @property
    def trouble(self) -> str | None:
        """What is wrong, None when all is well."""
        return None

    def summary(self) -> str:
        """What it does, in a few words, for `towpath status`."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Fields of documents.Status that are its own."""
        return {}

    def metrics(self) -> Iterable[Metric]:
        """Its metrics, read now."""
        return ()

    def routes(self) -> Iterable[APIRouter]:
        """Its part of the API, below /v1."""
        return ()

    def detach(self) -> None:
        """Take everything out of the kernel. Followed by close()."""

    def close(self) -> None:
        """Let go. What is in the kernel stays there."""
