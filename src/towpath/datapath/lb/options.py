# SPDX-License-Identifier: Apache-2.0
"""Options of services as ``struct service`` of ``bpf/abi/lb.h`` has them.

Each is a word of its own, stored once: a packet goes by the old value or by the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.core.lb.options import Options
from towpath.datapath.lb.allow_from import EVERYONE
from towpath.model.service import Affinity, Forwarding, HashBy, Tunnel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from towpath.datapath.lb.allow_from import SourceSets
    from towpath.datapath.lb.encap import Encaps
    from towpath.model.kinds import Prefix

    Array = np.ndarray[Any, Any]


class Flags(NamedTuple):
    """``enum service_flags``."""

    no_flow_table: int
    l2: int
    snat: int
    local: int = 0
    """Not an option, but what is known of the backends: kept as it is."""
    encap: int = 0
    hash_client: int = 0
    hash_port: int = 0

    def forwarding(self, flags: int) -> Forwarding:
        """Return how packets go to backends by a service's flags."""
        if flags & self.l2:
            return "l2"
        return "snat" if flags & self.snat else "dsr"

    def hash_by(self, flags: int) -> HashBy:
        """Return what new flows go by."""
        if flags & self.hash_client:
            return "client"
        return "port" if flags & self.hash_port else "flow"


class _Words(NamedTuple):
    """Words of a service, as ``struct service`` calls them."""

    flags: int
    table_size: int
    affinity: int
    flow_timeout: int
    encap: int


class ServiceOptions:
    """The options of all services. ``rows`` is an array of ``struct service``."""

    def __init__(self, rows: Array, flags: Flags, sources: SourceSets, encaps: Encaps) -> None:
        self._rows = rows
        self._flags = flags
        self._encaps = encaps
        self._sources = sources
        self._sets: dict[int, int] = {}
        """The set of sources that each service, by its index, has taken."""

    def write(self, index: int, options: Options) -> None:
        """Store a service's options. CapacityError: there is no room for its sources."""
        before, taken = self._sets.get(index, EVERYONE), self._sources.take(options.allow_from)
        self._sets[index] = taken
        self._rows["sources"][index] = taken
        self._sources.leave(before)
        self._rows["table_size"][index] = options.table_size
        self._rows["flow_timeout"][index] = options.flow_timeout or 0
        self._rows["affinity"][index] = options.affinity.timeout if options.affinity else 0
        # Before the flag says that it is looked at.
        tunnel = Tunnel(options.encap, options.encap_port)
        self._rows["encap"][index] = self._encaps.word(tunnel)
        kept = int(self._rows["flags"][index]) & self._flags.local
        self._rows["flags"][index] = self._flags_of(options) | kept

    def retire(self, index: int) -> None:
        """Let go of what a service has taken that packets find no more."""
        self._sources.leave(self._sets.pop(index, EVERYONE))

    @property
    def users(self) -> Mapping[tuple[Prefix, ...], int]:
        """How many services have each list of source prefixes."""
        return self._sources.in_use

    @property
    def sources_limit(self) -> int:
        """Source prefixes that there is room for."""
        return self._sources.limit

    def allowed(self, index: int) -> tuple[Prefix, ...] | None:
        """Return whom a service is for, None for everyone."""
        return self._sources.prefixes(self._sets.get(index, EVERYONE))

    def adopt(self, indexes: Iterable[int]) -> dict[int, Options]:
        """Take over what the kernel holds for these services, and return it."""
        indexes = list(indexes)
        rows = self._rows[indexes]
        self._sets = dict(zip(indexes, rows["sources"].tolist(), strict=True))
        prefixes = self._sources.adopt(self._sets.values())
        # Most services are alike: those that are share theirs.
        words = zip(*(rows[each].tolist() for each in _Words._fields), strict=True)
        known: dict[tuple[Any, ...], Options] = {}
        found = {}
        for index, each in zip(indexes, words, strict=True):
            taken = self._sets[index]
            if (each, taken) not in known:
                known[each, taken] = self._options(_Words(*each), prefixes.get(taken))
            found[index] = known[each, taken]
        return found

    def _flags_of(self, options: Options) -> int:
        remembers = 0 if options.flow_table else self._flags.no_flow_table
        ways = {"dsr": 0, "l2": self._flags.l2, "snat": self._flags.snat}
        wraps = 0 if options.encap == "ipip" else self._flags.encap
        hashes = {"flow": 0, "client": self._flags.hash_client, "port": self._flags.hash_port}
        return remembers | ways[options.forwarding] | wraps | hashes[options.hash_by]

    def _options(self, words: _Words, allow_from: Any) -> Options:
        flags, timeout = words.flags, words.affinity
        tunnel = self._encaps.tunnel(words.encap if flags & self._flags.encap else 0)
        return Options(
            table_size=words.table_size,
            flow_table=not flags & self._flags.no_flow_table,
            flow_timeout=words.flow_timeout or None,
            forwarding=self._flags.forwarding(flags),
            hash_by=self._flags.hash_by(flags),
            encap=tunnel.encap,
            encap_port=tunnel.port,
            affinity=Affinity(timeout) if timeout else None,
            allow_from=allow_from,
        )
