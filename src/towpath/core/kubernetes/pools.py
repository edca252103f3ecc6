# SPDX-License-Identifier: Apache-2.0
"""Which Service has which address of which pool.

What Services' status has is what was given; there is no other record. What was decided and isn't in
a status yet stays with its Service until it is. An address is given to one Service, or to those
that share it.

=============================================  =====================================================
what a Service has, in each of its families    what it gets
=============================================  =====================================================
an address of a pool that is for it            that
one that an older Service has as well          another; none, if there is none
one that no pool for it has                    another; that, if there is none
one, and wishes for another that can be given  what it wishes for
one, and wishes for another that can't be      what it has
none, and wishes for one that can't be given   none
none                                           what those have with whom it shares, else the first
                                               that is free from a place on that its name gives
=============================================  =====================================================
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.kubernetes.claims import Told
from towpath.core.kubernetes.rooms import Room

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from towpath.core.kubernetes.claims import Claim, Name
    from towpath.core.kubernetes.problems import Refusal
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes.pools import Pool


class Decision(NamedTuple):
    """What a Service's status is to say."""

    claim: Claim
    addresses: tuple[Address, ...]
    problems: tuple[Refusal, ...]
    told: Told | None
    """None: nothing of ours any more."""


class Usage(NamedTuple):
    """How much of a pool is taken."""

    name: str
    addresses: int
    used: int


class _Place:
    """A pool and its addresses by family."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        versions: set[int] = {each.first.version for each in pool.addresses}
        self.rooms: dict[int, Room] = {
            version: Room(each for each in pool.addresses if each.first.version == version)
            for version in versions
        }
        self.used = dict.fromkeys(versions, 0)

    def __contains__(self, address: Address) -> bool:
        room = self.rooms.get(address.version)
        return room is not None and address in room

    def is_for(self, claim: Claim) -> bool:
        pool = self.pool
        if claim.pool is not None and claim.pool != pool.name:
            return False
        if pool.namespaces is not None and claim.name[0] not in pool.namespaces:
            return False
        return all(claim.labels.get(name) == value for name, value in pool.selector or ())

    def gives(self, claim: Claim) -> bool:
        """Whether it is for a Service that doesn't say which address it wants."""
        return self.is_for(claim) and (self.pool.auto_assign or claim.pool == self.pool.name)


class Pools:
    """Who has what. What `decisions` returns is taken to be written, sooner or later."""

    def __init__(self) -> None:
        self._places: tuple[_Place, ...] = ()
        self._claims: dict[Name, Claim] = {}
        self._given: dict[Name, tuple[Address, ...]] = {}
        """What was decided last; at first what is in the status."""
        self._held: dict[Name, frozenset[Address]] = {}
        """That, and what is in the status: two while one is exchanged for another."""
        self._holders: dict[Address, set[Name]] = {}
        self._reserved: frozenset[Address] = frozenset()
        self._sharing: dict[tuple[object, ...], set[Name]] = {}
        self._dirty: set[Name] = set()
        self._waiting: set[Name] = set()
        """Those that may get something else when an address becomes free."""

    # ---- What is told ----------------------------------------------------------------------------

    def configure(self, pools: Iterable[Pool]) -> None:
        """These are the pools from now on."""
        self._places = tuple(_Place(each) for each in pools)
        for address in self._holders.keys() | self._reserved:
            self._count(address, 1)
        self._dirty |= self._claims.keys()

    def reserve(self, addresses: Iterable[Address]) -> None:
        """Nobody is given these from now on; whoever has one keeps it."""
        before, self._reserved = self._reserved, frozenset(addresses)
        for address in before ^ self._reserved:
            if address not in self._holders:
                self._count(address, 1 if address in self._reserved else -1)
        if before - self._reserved:
            self._dirty |= self._waiting

    def put(self, claim: Claim) -> None:
        """A Service is there, or is another now."""
        name = claim.name
        before = self._claims.get(name)
        if before is not None and before.uid != claim.uid:
            self.remove(name)
            before = None
        self._claims[name] = claim
        self._index(before, claim)
        given = self._given.get(name, ()) if claim.mine and not claim.has else claim.has
        self._hold(claim, given)
        self._dirty.add(name)
        if before is not None and (before.ports, before.share) != (claim.ports, claim.share):
            # Others may get on with it no more, or do now.
            for address in self._held[name]:
                self._dirty |= self._holders[address]
            self._dirty |= self._waiting

    def remove(self, name: Name) -> None:
        """A Service is gone, or has nothing to do with pools any more."""
        claim = self._claims.pop(name, None)
        if claim is not None:
            self._index(claim, None)
            self._let_go(name, self._held.pop(name))
            del self._given[name]
        self._dirty.discard(name)
        self._waiting.discard(name)

    def replace(self, claims: Iterable[Claim], keep: Collection[Name] = ()) -> None:
        """These are all, besides those that are to be kept."""
        found = {each.name: each for each in claims}
        for name in [each for each in self._claims if each not in found and each not in keep]:
            self.remove(name)
        for each in found.values():
            if self._claims.get(each.name) != each:
                self.put(each)

    def again(self, name: Name) -> None:
        """What was decided of it could not be written: it is decided again."""
        if name in self._claims:
            self._dirty.add(name)

    def begin(self) -> None:
        """Decide all by statuses alone: what was decided before may have been another's to say."""
        for claim in self._claims.values():
            self._hold(claim, claim.has)
        self._dirty |= self._claims.keys()

    def _index(self, before: Claim | None, now: Claim | None) -> None:
        if before is not None and before.share is not None:
            names = self._sharing[before.share]
            names.discard(before.name)
            if not names:
                del self._sharing[before.share]
        if now is not None and now.share is not None:
            self._sharing.setdefault(now.share, set()).add(now.name)

    # ---- Who holds what --------------------------------------------------------------------------

    def _hold(self, claim: Claim, given: tuple[Address, ...]) -> None:
        name = claim.name
        self._given[name] = given
        before = self._held.get(name, frozenset())
        now = self._held[name] = frozenset((*claim.has, *given))
        for address in now - before:
            if address not in self._holders:
                self._holders[address] = set()
                if address not in self._reserved:
                    self._count(address, 1)
            # Who has it as well may have to get another one.
            self._dirty |= self._holders[address]
            self._holders[address].add(name)
        self._let_go(name, before - now)

    def _let_go(self, name: Name, addresses: Iterable[Address]) -> None:
        for address in addresses:
            names = self._holders[address]
            names.discard(name)
            self._dirty |= names | self._waiting
            if not names:
                del self._holders[address]
                if address not in self._reserved:
                    self._count(address, -1)

    def _count(self, address: Address, change: int) -> None:
        for place in self._places:
            if address in place:
                place.used[address.version] += change

    @property
    def undecided(self) -> bool:
        """Whether there is anything to decide."""
        return bool(self._dirty)

    # ---- What is decided -------------------------------------------------------------------------

    def decisions(self) -> list[Decision]:
        """Return what statuses are to say that don't yet. Older Services come first."""
        names, self._dirty = self._dirty & self._claims.keys(), set()
        found = (self._decide(each) for each in sorted(names, key=self._age))
        return [each for each in found if each is not None]

    def _age(self, name: Name) -> tuple[object, ...]:
        claim = self._claims[name]
        # Those that have an address are asked before those that look for one.
        return not claim.has, claim.age, name

    def _decide(self, name: Name) -> Decision | None:
        claim = self._claims[name]
        self._waiting.discard(name)
        if claim.leaves:
            return Decision(claim, (), (), None)
        if not claim.mine:
            return None
        given: list[Address] = []
        problems = list(claim.problems)
        for version in claim.families:
            address, problem = self._choose(claim, version)
            if address is not None:
                given.append(address)
            if problem is not None:
                problems.append(problem)
        if len(problems) > len(claim.problems):
            self._waiting.add(name)
        self._hold(claim, tuple(given))
        told = self._tell(given, problems)
        if claim.exact and claim.has == tuple(given) and claim.told == told:
            return None
        return Decision(claim, tuple(given), tuple(problems), told)

    def _tell(self, given: list[Address], problems: list[Refusal]) -> Told:
        if problems:
            return Told(ok=False, reason=problems[0].reason, message=_joined(problems))
        return Told(ok=True, reason="Given", message=", ".join(map(str, given)) or "none is wanted")

    def _choose(self, claim: Claim, version: int) -> tuple[Address | None, Refusal | None]:
        has = self._kept(claim, version)
        wish = next((each for each in claim.wishes if each.version == version), None)
        if wish is not None and wish != has:
            why = self._why_not(claim, wish)
            return (wish, None) if why is None else (has, why)
        if has is not None and self._is_pooled(claim, has):
            return has, None
        found = self._shared(claim, version) or self._free(claim, version)
        if found is not None:
            return found, None
        if has is not None:
            what = f"{has} is kept, but no pool for this Service has it, nor another one that is"
            return has, claim.refuse("NotInPool", f"{what} free")
        return None, self._why_none(claim, version)

    def _kept(self, claim: Claim, version: int) -> Address | None:
        """What it has, unless an older Service has it as well."""
        for address in self._given[claim.name]:
            if address.version == version:
                others = self._others(claim, address)
                if not any(address in each.has and each.age < claim.age for each in others):
                    return address
        return None

    def _others(self, claim: Claim, address: Address) -> Iterator[Claim]:
        """Who has an address and doesn't share it."""
        for name in self._holders.get(address, ()):
            other = self._claims[name]
            if name != claim.name and not claim.may_share(other):
                yield other

    def _is_pooled(self, claim: Claim, address: Address) -> bool:
        return any(address in each and each.is_for(claim) for each in self._places)

    def _why_not(self, claim: Claim, wish: Address) -> Refusal | None:
        """Why it can't have what it wishes for."""
        if not self._is_pooled(claim, wish):
            what = f"{wish} isn't given: no pool for this Service has it"
            return claim.refuse("NotInPool", what)
        other = next(self._others(claim, wish), None)
        if other is not None:
            what = f"{wish} isn't given: Service {'/'.join(other.name)} has it"
            return claim.refuse("AddressInUse", what)
        if wish in self._reserved:
            return claim.refuse("AddressInUse", f"{wish} isn't given: it is a Node's own")
        return None

    def _shared(self, claim: Claim, version: int) -> Address | None:
        """An address of those with whom it shares, if all who have that do."""
        if claim.share is None:
            return None
        for address in self._shared_by(claim.share):
            if address.version != version or not self._is_pooled(claim, address):
                continue
            if next(self._others(claim, address), None) is None:
                return address
        return None

    def _shared_by(self, share: tuple[object, ...]) -> Iterator[Address]:
        claims = sorted(map(self._claims.__getitem__, self._sharing[share]), key=lambda c: c.age)
        return iter(dict.fromkeys(each for claim in claims for each in self._given[claim.name]))

    def _free(self, claim: Claim, version: int) -> Address | None:
        # A Service that is made anew finds its address where it was; two agents find the same.
        digest = blake2b("/".join(claim.name).encode(), digest_size=8).digest()
        begin = int.from_bytes(digest, "big")
        taken = _Either(self._holders, self._reserved)
        for place in self._places:
            room = place.rooms.get(version)
            if room is None or not place.gives(claim) or place.used[version] >= room.size:
                continue
            found = room.free(begin, taken)
            if found is not None:
                return found
        return None

    def _why_none(self, claim: Claim, version: int) -> Refusal | None:
        mine = [each for each in self._places if each.gives(claim)]
        if claim.pool is not None and all(e.pool.name != claim.pool for e in self._places):
            return claim.refuse("NoPool", f"there is no pool {claim.pool}")
        if not mine:
            return claim.refuse("NoPool", "no pool is for this Service")
        full = [each.pool.name for each in mine if version in each.rooms]
        if full:
            names = ", ".join(full)
            return claim.refuse("PoolExhausted", f"no IPv{version} address is free in: {names}")
        # One that may do without a family isn't told, if it has the other.
        others = {v for v in claim.families if v != version and any(v in e.rooms for e in mine)}
        if claim.required or not others:
            return claim.refuse("NoPool", f"no pool for this Service has IPv{version}")
        return None

    # ---- What is asked ---------------------------------------------------------------------------

    def usage(self) -> list[Usage]:
        """How much of each pool is taken, in both families together."""
        return [
            Usage(
                each.pool.name,
                sum(room.size for room in each.rooms.values()),
                sum(each.used.values()),
            )
            for each in self._places
        ]

    def overlaps(self) -> list[tuple[str, str]]:
        """Pools that have an address in common, which only one Service gets."""
        return [
            (one.pool.name, other.pool.name)
            for index, one in enumerate(self._places)
            for other in self._places[index + 1 :]
            if any(
                one.rooms[version].meets(other.rooms[version])
                for version in one.rooms.keys() & other.rooms.keys()
            )
        ]

    def refusals(self) -> list[Refusal]:
        """What Services' statuses say that they don't get, whoever has written it."""
        return [
            each.refuse(each.told.reason, each.told.message)
            for each in tuple(self._claims.values())  # whoever asks may be another thread
            if each.mine and each.told is not None and not each.told.ok
        ]

    def knows(self, claim: Claim) -> bool:
        """Whether nothing newer was told of a Service."""
        found = self._claims.get(claim.name)
        return found is not None and (found.uid, found.version) == (claim.uid, claim.version)

    def given(self, name: Name) -> tuple[Address, ...]:
        """What a Service has, or is about to have."""
        return self._given.get(name, ())


class _Either:
    """In one or the other."""

    def __init__(self, one: Mapping[Address, object], other: frozenset[Address]) -> None:
        self._one, self._other = one, other

    def __contains__(self, address: object) -> bool:
        return address in self._one or address in self._other


def _joined(problems: Iterable[Refusal]) -> str:
    return "; ".join(each.message for each in problems)[:1000]
