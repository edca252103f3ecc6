# SPDX-License-Identifier: Apache-2.0
"""Sets of wildcard rules, and packets for them, as :mod:`towpath.bench.flavours` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.bench.flavours import EXACT, HIGH, ICMP, RANGE, TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.bench.flavours import Flavour

    Array = np.ndarray[Any, Any]

RULE = np.dtype(
    [
        ("source", np.uint64, 2),  # high and low half; an IPv4 address is in the low one
        ("destination", np.uint64, 2),
        ("source_length", np.uint8),
        ("destination_length", np.uint8),
        ("sport", np.uint16, 2),  # first and last
        ("dport", np.uint16, 2),
        ("protocol", np.int16),  # -1 = any
    ]
)
PACKET = np.dtype(
    [
        ("source", np.uint64, 2),
        ("destination", np.uint64, 2),
        ("sport", np.uint16),
        ("dport", np.uint16),
        ("protocol", np.uint8),
    ]
)


# ---- Rules ---------------------------------------------------------------------------------------


def generate(flavour: Flavour, count: int, *, seed: int, version: int = 4) -> Array:
    """Return ``count`` different rules (dtype RULE), the one of highest priority first.

    The same for the same arguments. Rules that are narrower tend to come before wider ones, as
    they would have no effect behind them. IPv6 rules have the lengths of IPv4 ones, stretched.
    ValueError: ``version`` is neither 4 nor 6, or there are not so many rules of that flavour.
    """
    if version not in _WIDTHS:
        raise ValueError(f"version: {version}; allowed: 4 or 6")
    chance = np.random.default_rng([seed, version])
    rules = np.zeros(0, RULE)
    for _ in range(_TRIES):
        more = _some(flavour, count + count // 4 + 64, chance, version, seed)
        _, first = np.unique(joined := np.concatenate([rules, more]), return_index=True)
        rules = joined[np.sort(first)]
        if len(rules) >= count:
            return _in_order(rules[:count], chance)
    raise ValueError(f"there are only {len(rules)} different rules; allowed: up to these")


_TRIES = 20
_WIDTHS = {4: 32, 6: 128}
_DISORDER = 12.0  # bits by which a wider rule may come before a narrower one


def _some(flavour: Flavour, count: int, chance: Any, version: int, seed: int) -> Array:
    rules = np.zeros(count, RULE)
    kinds = _choose(flavour.ports, count, chance)
    lengths = _lengths(flavour, kinds, chance)
    for column, name in enumerate(("source", "destination")):
        length = _STRETCH[lengths[:, column]] if version == 6 else lengths[:, column]  # noqa: PLR2004
        rules[f"{name}_length"] = length
        tree = _Tree(seed * 4 + version + column, flavour.clusters[column], _WIDTHS[version])
        rules[name] = tree.prefixes(length, chance)
    rules["sport"] = _ports(kinds[:, 0], flavour.dports, np.random.default_rng(seed), chance)
    rules["dport"] = _ports(kinds[:, 1], flavour.dports, np.random.default_rng(seed + 1), chance)
    given = np.isin(kinds, (EXACT, HIGH, RANGE)).any(axis=1)
    with_ports, without = (
        chance.choice(list(weights), count, p=_shares(weights)) for weights in flavour.protocols
    )
    rules["protocol"] = np.where(given, with_ports, without)
    return rules


# IPv6 has what IPv4 has at other lengths: hosts at 128, subnets at 64, sites at 48 or less.
_STRETCH = np.array([*(2 * length for length in range(25)), 50, 52, 56, 60, 64, 80, 112, 128])


def _lengths(flavour: Flavour, kinds: Array, chance: Any) -> Array:
    """Pairs of prefix lengths for rules with these kinds of ports, shape ``(n, 2)``."""
    pairs, weights = np.array(list(flavour.lengths)), _shares(flavour.lengths)
    lengths = np.zeros(kinds.shape, int)
    for number, kind in enumerate(flavour.ports):
        mine = (kinds == kind).all(axis=1)
        fits = np.random.default_rng(number).random(len(pairs)) >= flavour.apart
        fits[0] = True
        shares = np.where(fits, weights, 0)
        lengths[mine] = pairs[chance.choice(len(pairs), mine.sum(), p=shares / shares.sum())]
    farthest = len(flavour.spread)
    steps = np.arange(-farthest, farthest + 1)
    sides = np.array(flavour.spread) / 2
    moves = chance.choice(steps, lengths.shape, p=[*sides[::-1], 1 - sides.sum() * 2, *sides])
    moved: Array = np.clip(lengths + moves, 0, 32)
    return moved


def _choose(weights: dict[tuple[int, int], float], count: int, chance: Any) -> Array:
    pairs = np.array(list(weights))
    chosen: Array = pairs[chance.choice(len(pairs), count, p=_shares(weights))]
    return chosen


def _shares(weights: dict[Any, float]) -> Array:
    values = np.array(list(weights.values()))
    shares: Array = values / values.sum()
    return shares


def _ports(kinds: Array, many: tuple[int, int], constants: Any, chance: Any) -> Array:
    """The first and last port of each; single ports and ranges come from a few, unevenly."""
    singles = constants.choice(constants.integers(1, 50000, 1000), many[0])
    starts = constants.integers(1024, 60000, many[1])
    widths = constants.choice((4, 7, 9, 10, 20, 39, 49, 50, 99, 100, 255), many[1])
    single = singles[_unevenly(many[0], len(kinds), chance)]
    which = _unevenly(many[1], len(kinds), chance)
    first = np.select(
        [kinds == EXACT, kinds == HIGH, kinds == RANGE], [single, 1024, starts[which]]
    )
    last = np.select(
        [kinds == EXACT, kinds == RANGE], [single, starts[which] + widths[which]], 65535
    )
    return np.stack([first, last], axis=1)


def _unevenly(many: int, count: int, chance: Any) -> Array:
    """Indexes below ``many``, the lower the more often (Zipf's law)."""
    shares = 1 / np.arange(1, many + 1)
    chosen: Array = chance.choice(many, count, p=shares / shares.sum())
    return chosen


def _in_order(rules: Array, chance: Any) -> Array:
    lengths = rules["source_length"].astype(float) + rules["destination_length"]
    narrowness = lengths + chance.random(len(rules)) * _DISORDER
    ordered: Array = rules[np.argsort(-narrowness, kind="stable")]
    return ordered


class _Tree:
    """Addresses that come in clusters: at each node of a binary tree one side has more of them.

    Which side, and by how much, is a hash of the node: the tree needs no memory, and is the same
    for the same seed. ``clusters``: 0 for addresses spread evenly, 1 for few clusters.
    """

    def __init__(self, seed: int, clusters: float, width: int) -> None:
        self._seed = seed
        self._clusters = clusters
        self._width = width

    def prefixes(self, lengths: Array, chance: Any) -> Array:
        """One network address of each of these lengths, shape ``(n, 2)``: high and low half."""
        count, width = len(lengths), self._width
        node = np.full(count, self._seed, np.uint64)
        halves = np.zeros((count, 2), np.uint64)
        for level in range(width):
            mixed = _mix(node + np.uint64(level))
            lean = (mixed >> np.uint64(11)).astype(float) / 2**52 - 1
            much = 1 - (1 - abs(lean)) ** 5
            threshold = 0.5 + np.copysign(much, lean) * self._clusters / 2 * _uneven(level, width)
            bit = (chance.random(count) < threshold) & (level < lengths)
            at = width - 1 - level
            halves[:, 0 if at >= 64 else 1] |= bit.astype(np.uint64) << np.uint64(at % 64)  # noqa: PLR2004
            node = np.where(level < lengths, _mix(mixed ^ bit.astype(np.uint64)), node)
        return halves


def _uneven(level: int, width: int) -> float:
    """Networks are few, and the hosts in them more."""
    return 1.0 if level < width * 3 // 4 else 0.7


def _mix(word: Array) -> Array:
    """splitmix64 (Steele et al., OOPSLA 2014)."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Array = word ^ word >> np.uint64(31)
    return mixed


# ---- Packets -------------------------------------------------------------------------------------


def matching_packets(rules: Array, count: int, *, seed: int, locality: bool = False) -> Array:
    """Packets (dtype PACKET), each in a rule chosen at random.

    With ``locality`` a packet comes again as often as a Pareto distribution says (shape 1), as
    packets of a flow do; otherwise each is another one.
    """
    chance = np.random.default_rng([seed, 1])
    chosen = rules[chance.integers(0, len(rules), count)]
    packets = np.zeros(count, PACKET)
    for name in ("source", "destination"):
        packets[name] = _within(chosen[name], chosen[f"{name}_length"], rules, chance)
    for name in ("sport", "dport"):
        packets[name] = chance.integers(chosen[name][:, 0], chosen[name][:, 1].astype(int) + 1)
    common = chance.choice((TCP, UDP, ICMP), count)
    packets["protocol"] = np.where(chosen["protocol"] < 0, common, chosen["protocol"])
    if locality:
        times = np.minimum(chance.pareto(1, count) + 1, count).astype(int)
        packets = np.repeat(packets, times)[:count]
    return packets


def random_packets(count: int, *, seed: int, version: int = 4) -> Array:
    """Packets whose addresses and ports are anything."""
    chance = np.random.default_rng([seed, 2])
    packets = np.zeros(count, PACKET)
    width = _WIDTHS[version]
    for name in ("source", "destination"):
        packets[name][:, 1] = chance.integers(
            0, 1 << min(width, 64), count, np.uint64, endpoint=False
        )
        if width > 64:  # noqa: PLR2004
            packets[name][:, 0] = chance.integers(0, 1 << 64, count, np.uint64, endpoint=False)
    for name in ("sport", "dport"):
        packets[name] = chance.integers(0, 65536, count)
    packets["protocol"] = chance.choice((TCP, UDP, ICMP), count)
    return packets


def _within(network: Array, lengths: Array, rules: Array, chance: Any) -> Array:
    """An address in each network; the family is known by the rules' longest prefix."""
    longest = max(int(rules["source_length"].max()), int(rules["destination_length"].max()))
    width = 32 if longest <= 32 else 128  # noqa: PLR2004
    free = width - lengths.astype(int)
    noise = chance.integers(0, 1 << 64, (len(network), 2), np.uint64, endpoint=False)
    low = np.clip(free, 0, 64)
    high = np.clip(free - 64, 0, 64)
    mask = np.stack([_low_bits(high), _low_bits(low)], axis=1)
    addresses: Array = network | noise & mask
    return addresses


def _low_bits(count: Array) -> Array:
    whole = np.uint64(0xFFFFFFFFFFFFFFFF)
    masks = whole >> (64 - np.clip(count, 1, 64)).astype(np.uint64)
    low: Array = np.where(count > 0, masks, np.uint64(0))
    return low


def masks(rules: Array) -> tuple[int, int]:
    """How many different pairs of prefix lengths there are, alone and with ports and protocol."""
    pairs = rules[["source_length", "destination_length"]]
    full = np.zeros(
        len(rules), [("pair", pairs.dtype), ("sport", "u1"), ("dport", "u1"), ("protocol", "?")]
    )
    full["pair"] = pairs
    for name in ("sport", "dport"):
        width = rules[name][:, 1].astype(int) - rules[name][:, 0]
        full[name] = np.select([width == 0, width == 65535], [2, 0], 1)  # noqa: PLR2004
    full["protocol"] = rules["protocol"] >= 0
    return len(np.unique(pairs)), len(np.unique(full))


def columns(records: Array) -> Iterator[tuple[Any, ...]]:
    """Rules or packets one after the other, all numbers and lists of them."""
    return zip(*(records[name].tolist() for name in records.dtype.names or ()), strict=True)


def text(rules: Array) -> Iterator[str]:
    """Rules of IPv4 in ClassBench's format, a line each."""
    for rule in columns(rules):
        (_, source), (_, destination), slength, dlength, sport, dport, protocol = rule
        which = "0x00/0x00" if protocol < 0 else f"0x{protocol:02x}/0xFF"
        yield (
            f"@{_dotted(source)}/{slength}\t{_dotted(destination)}/{dlength}\t"
            f"{sport[0]} : {sport[1]}\t{dport[0]} : {dport[1]}\t{which}\t0x0000/0x0000\t"
        )


def packet_text(packets: Array) -> Iterator[str]:
    """Packets of IPv4 in the format of ClassBench's traces, a line each."""
    for (_, source), (_, destination), sport, dport, protocol in columns(packets):
        yield f"{source}\t{destination}\t{sport}\t{dport}\t{protocol}\t0"


def _dotted(address: int) -> str:
    return ".".join(str(address >> shift & 0xFF) for shift in (24, 16, 8, 0))
