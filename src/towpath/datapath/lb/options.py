# SPDX-License-Identifier: Apache-2.0
"""Options of services as ``struct service`` of ``bpf/abi/lb.h`` has them.

Each is a word of its own, stored once: a packet goes by the old value or by the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.core.lb.options import Options
from towpath.datapath.lb.sources import EVERYONE
from towpath.model.service import Affinity, Forwarding, HashBy, Tunnel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from towpath.datapath.lb.encap import Encaps
    from towpath.datapath.lb.quic import Forms
    from towpath.datapath.lb.sources import Entries, SourceSets
    from towpath.model.kinds import Prefix

    Array = np.ndarray[Any, Any]

_WORD_BITS = 32


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
    quic: int = 0
    routes_shift: int = 32
    """Above: the number of the set of sources that have routes."""

    def forwarding(self, flags: int) -> Forwarding:
        """Return how packets go to backends by a service's flags."""
        if flags & self.l2:
            return "l2"
        return "snat" if flags & self.snat else "dsr"

    @property
    def most_routes(self) -> int:
        """The largest number of such a set."""
        return (1 << _WORD_BITS - self.routes_shift) - 1

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
    """The options of all services. ``rows`` is an array of ``struct service``.

    ``quic_forms``: an element for each, which only those with quic need.
    """

    def __init__(
        self,
        rows: Array,
        flags: Flags,
        sources: SourceSets,
        encaps: Encaps,
        forms: Forms,
        quic_forms: Array,
    ) -> None:
        self._rows = rows
        self._forms = forms
        self._quic_forms = quic_forms
        self._flags = flags
        self._encaps = encaps
        self._sources = sources
        self._sets: dict[int, int] = {}
        """The set of sources that each service, by its index, has taken."""
        self._routes: dict[int, int] = {}
        """The same of sources that have routes."""

    def write(self, index: int, options: Options) -> None:
        """Store a service's options. CapacityError: there is no room for its sources."""
        before, taken = self._sets.get(index, EVERYONE), self._sources.take(options.allow_from)
        self._sets[index] = taken
        self._rows["sources"][index] = taken
        self._sources.leave(before)
        self._rows["table_size"][index] = options.table_size
        self._rows["flow_timeout"][index] = options.flow_timeout or 0
        self._rows["affinity"][index] = options.affinity.timeout if options.affinity else 0
        # Before flags say that they are looked at.
        if options.quic is not None:
            self._quic_forms[index] = self._forms.word(options.quic)
        tunnel = Tunnel(options.encap, options.encap_port)
        self._rows["encap"][index] = self._encaps.word(tunnel)
        kept = int(self._rows["flags"][index]) & self._flags.local
        self._rows["flags"][index] = self._flags_of(options) | kept | self._routed(index)

    def route(self, index: int, rows: Mapping[Prefix, int]) -> None:
        """Have new flows from these prefixes go by the tables of these rows, in one store.

        CapacityError: there is no room for the prefixes.
        """
        before = self._routes.get(index, EVERYONE)
        taken = self._sources.take_rows(rows, self._flags.most_routes)
        self._routes[index] = taken
        others = int(self._rows["flags"][index]) & (1 << self._flags.routes_shift) - 1
        self._rows["flags"][index] = others | self._routed(index)
        self._sources.leave(before)

    def rows_of(self, index: int) -> Mapping[Prefix, int]:
        """Return the rows that new flows from prefixes go by."""
        return self._sources.rows(self._routes.get(index, EVERYONE))

    def _routed(self, index: int) -> int:
        return self._routes.get(index, EVERYONE) << self._flags.routes_shift

    def retire(self, index: int) -> None:
        """Let go of what a service has taken that packets find no more."""
        self._sources.leave(self._sets.pop(index, EVERYONE))
        self._sources.leave(self._routes.pop(index, EVERYONE))

    @property
    def users(self) -> Mapping[Entries, int]:
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
        indexes, shift = list(indexes), self._flags.routes_shift
        rows = self._rows[indexes]
        self._sets = dict(zip(indexes, rows["sources"].tolist(), strict=True))
        routes = (rows["flags"] >> shift).tolist()
        self._routes = dict(zip(indexes, routes, strict=True))
        prefixes = self._sources.adopt((*self._sets.values(), *routes))
        # Most services are alike: those that are share theirs.
        words = zip(*(rows[each].tolist() for each in _Words._fields), strict=True)
        # Maps of a version that knew none have no element for each.
        by_id = (rows["flags"] & self._flags.quic).astype(bool).tolist()
        forms = [
            int(self._quic_forms[index]) if asks else 0
            for index, asks in zip(indexes, by_id, strict=True)
        ]
        known: dict[tuple[Any, ...], Options] = {}
        found = {}
        for index, each, form in zip(indexes, words, forms, strict=True):
            alike = (each, form, self._sets[index])
            if alike not in known:
                allowed = prefixes.get(self._sets[index])
                known[alike] = self._options(_Words(*each), form, allowed)
            found[index] = known[alike]
        return found

    def _flags_of(self, options: Options) -> int:
        remembers = 0 if options.flow_table else self._flags.no_flow_table
        ways = {"dsr": 0, "l2": self._flags.l2, "snat": self._flags.snat}
        wraps = 0 if options.encap == "ipip" else self._flags.encap
        hashes = {"flow": 0, "client": self._flags.hash_client, "port": self._flags.hash_port}
        by_id = 0 if options.quic is None else self._flags.quic
        return remembers | ways[options.forwarding] | wraps | hashes[options.hash_by] | by_id

    def _options(self, words: _Words, form: int, allow_from: Any) -> Options:
        flags, timeout = words.flags, words.affinity
        by_id = flags & self._flags.quic
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
            quic=self._forms.quic(form) if by_id else None,
        )
