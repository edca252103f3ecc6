# SPDX-License-Identifier: Apache-2.0
"""What Towpath needs of a kernel, and what it does without.

A rule is one capability. Its ways are what can provide it, best first, and each names the probe
that tells whether this way works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from towpath.capabilities import CAPABILITIES, ORIGINS
from towpath.doctor.outside import declared, is_library
from towpath.doctor.ways import question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.capabilities import Capability, Origin
    from towpath.model.settings import Config, Device


@dataclass(frozen=True, slots=True)
class Way:
    """One way to have a capability."""

    probe: str
    """A key of `probes.PROBES`; of a device's probe with ``:`` and the device's name."""
    loses: str = ""
    """What the user goes without for using this way instead of the first."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One capability."""

    name: str
    ways: tuple[Way, ...]
    needed_by: str
    loses: str
    """What the user goes without when no way works."""
    required: bool = False


def rules(config: Config | None = None) -> list[Rule]:
    """What a configuration needs; without one, what everything needs on any device."""
    more = [rule for capability in capabilities(config) for rule in _more(capability, config)]
    if config is None:
        return [*RULES, *OUTSIDE, *more]
    mine = [_of_config(rule, config) for rule in RULES]
    return [*mine, *_devices(config), *OUTSIDE, *more]


def capabilities(config: Config | None) -> list[Capability | Origin]:
    """Those that a configuration has, and where its services come from; without one, all."""
    of = [each for each in CAPABILITIES if config is None or each.configured(config)]
    return [*of, *(each for each in ORIGINS if config is None or each.name in config.sections)]


def _more(capability: Capability | Origin, config: Config | None) -> Iterator[Rule]:
    """What a capability needs by a module of its own."""
    made = capability.find("doctor", "rules")
    if made is not None:
        yield from made(config and config.sections[capability.name])


# ---- On any device -------------------------------------------------------------------------------

_BPFFS = "BPF file system"
_IPV6 = "bpf_fib_lookup of IPv6"
_V4, _V6 = 4, 6
_EVERYTHING = "everything"
_BALANCER = "load balancer"
_RECORDER = "recorder"
_SOURCE_NAT = "source NAT program"
_RULES_BY_MARK = "policy routing"
_NO_CAPTURES = "packets can't be captured"

RULES = (
    Rule("libbpf", (Way("libbpf"),), _EVERYTHING, "nothing can be loaded", required=True),
    Rule(
        "permissions",
        (
            Way("permissions"),
            Way(
                "permissions without CAP_SYS_ADMIN",
                "an agent can't take over what an earlier one has pinned",
            ),
        ),
        _EVERYTHING,
        "nothing can be loaded or attached",
        required=True,
    ),
    Rule(
        _BPFFS,
        (
            Way("bpffs"),
            Way("bpffs can be mounted", "only the mount namespace of the agent sees the pins"),
        ),
        "agent, decap --pin",
        "nothing outlives its process, and the agent does not start",
    ),
    Rule(
        "JIT compiler",
        (Way("jit"), Way("interpreter", "packets take several times as long")),
        "load balancer, decap",
        "no program can run",
    ),
    Rule(
        "mmapable arrays",
        (Way("map_mmap"),),
        _BALANCER,
        "services can't be written",
        required=True,
    ),
    Rule(
        "batched map operations",
        (Way("batch"), Way("single", "a large map takes longer to read")),
        "load balancer, decap",
        "maps can't be read",
    ),
    Rule(
        "waiting for packets in flight",
        (Way("membarrier"), Way("map_in_map", "nothing: it waits as long")),
        _BALANCER,
        "memory that changes free can't be used again",
        required=True,
    ),
    Rule(
        "XDP links",
        (Way("xdp_link"),),
        "load balancer, decap",
        "programs can't be attached",
        required=True,
    ),
    Rule(
        "load balancer program",
        (Way("balancer_program"),),
        _BALANCER,
        "nothing is balanced",
        required=True,
    ),
    Rule(
        _SOURCE_NAT,
        (Way("source_nat_program"),),
        "forwarding: snat",
        "with addresses in snat the agent does not start",
    ),
    Rule("decapsulation program", (Way("decap_program"),), "decap", "decap does not run"),
    Rule(
        "programs at tc ingress",
        (Way("tcx"), Way("clsact", "a process that is killed leaves its filter behind")),
        "load balancer: unresolved next hops",
        "packets whose next hop is not resolved are lost",
        required=True,
    ),
    Rule(
        "bpf_redirect_neigh",
        (Way("redirect_neigh"),),
        "load balancer: unresolved next hops",
        "packets whose next hop is not resolved are lost",
        required=True,
    ),
    Rule(
        "bpf_fib_lookup",
        (Way("fib"),),
        _BALANCER,
        "no way to a backend is found",
        required=True,
    ),
    Rule(_IPV6, (Way("fib_ipv6"),), "IPv6 backends", "no way to an IPv6 backend is found"),
    Rule(
        "MTU from bpf_fib_lookup",
        (Way("fib_mtu"),),
        _BALANCER,
        "packets that no longer fit once encapsulated are not recognised and counted",
    ),
    Rule(
        "device of unresolved next hops from bpf_fib_lookup",
        (Way("fib_egress"),),
        "load balancer on several devices",
        "packets leave by the device they came in on until the next hop is resolved",
    ),
    Rule(
        "source address from bpf_fib_lookup",
        (
            Way("fib_source"),
            Way("first_address", "the outer source may be another than the route prefers"),
        ),
        "source: node",
        "outer source addresses must be configured",
    ),
    Rule(
        "frames in fragments",
        (Way("fragments"),),
        "load balancer, decap: MTU above 3,400",
        "where frames are larger than a page has room for, drivers refuse native mode",
    ),
    Rule(
        "kernel BTF",
        (Way("kernel_btf"),),
        "load balancer, decap: the kernel's own types and functions",
        "headers behind the first fragment aren't reached, and refusals not counted",
    ),
    Rule(
        "headers behind the first fragment",
        (Way("pull_data"),),
        "load balancer, decap: MTU above 3,400",
        "packets of drivers that put headers there (mlx5, striding receive queue) pass by",
    ),
    Rule(
        "what the kernel refuses to send",
        (Way("refusals"),),
        "counters",
        "it is not counted; without xdp-features (before 6.3) the kernel sends what is redirected",
    ),
    Rule(
        _RULES_BY_MARK,
        (Way("rules_by_mark"),),
        "health checks by tcp, http and https",
        "backends can only be checked by commands",
    ),
    Rule("ring buffer", (Way("ring_buffer"),), _RECORDER, _NO_CAPTURES),
    Rule(
        "recorder program",
        (
            Way("recorder_program_of_source_nat"),
            Way("recorder_program", "no captures where there are addresses in snat"),
        ),
        _RECORDER,
        _NO_CAPTURES,
    ),
    Rule(
        "copies of frames",
        (
            Way("xdp_load_bytes"),
            Way("probe_read_kernel", "captures, too, if the kernel is locked down"),
        ),
        _RECORDER,
        _NO_CAPTURES,
    ),
    Rule(
        "managed neighbours",
        (Way("managed_neighbours"),),
        "next hops",
        "next hops grow stale while no agent runs; one that runs asks again every 20 to 30 s",
    ),
    Rule("libpcap", (Way("libpcap"),), "record --expr", "captures can't be chosen by expressions"),
)


# ---- Of a configuration --------------------------------------------------------------------------


def _of_config(rule: Rule, config: Config) -> Rule:
    """Require what this configuration needs and others don't."""
    if rule.name == _BPFFS:
        ways = tuple(Way(f"{way.probe}:{config.state.pins}", way.loses) for way in rule.ways)
        return replace(rule, ways=ways, required=True)
    if not config.devices and rule.needed_by != _EVERYTHING:
        return replace(rule, required=False)
    needed = {
        _IPV6: _V6 in _families(config),
        _SOURCE_NAT: bool(config.snat.ipv4 or config.snat.ipv6),
    }
    return replace(rule, required=needed.get(rule.name, rule.required))


def _families(config: Config) -> set[int]:
    """IP versions of the backends that the file has; the API may bring others later."""
    return {backend.address.version for each in config.services for backend in each.backends}


def _devices(config: Config) -> Iterator[Rule]:
    families = _families(config)
    if config.devices and families:
        yield Rule(
            "ways to backends",
            (Way(f"ways:{question(config)}"),),
            _BALANCER,
            "packets for these backends are dropped",
        )
    for device in config.devices:
        yield _xdp(device)
        yield Rule(
            f"redirects to {device.name}",
            (
                Way(f"redirect_target:{device.name}"),
                Way(f"by_the_kernel:{device.name}", "packets that leave there take longer"),
            ),
            "load balancer on several devices, or on veth",
            f"packets may have to be handed to the kernel to leave by {device.name}",
        )
        yield Rule(
            f"VLAN tags on {device.name}",
            (Way(f"vlan_tags:{device.name}"),),
            "load balancer in VLANs",
            "packets of VLANs are taken for such as have no tag",
        )
        for version in (_V4, _V6):
            yield Rule(
                f"IPv{version} forwarding on {device.name}",
                (Way(f"forwarding{version}:{device.name}"),),
                f"IPv{version} backends",
                "the kernel tells no way to a backend for packets of this device",
                required=version in families,
            )
        yield Rule(
            f"programs on {device.name}",
            (Way(f"programs:{device.name}"),),
            "load balancer: who else sees its packets",
            "who else sees packets of this device is not known",
        )


_XDP_WAYS = {
    "native": (Way("native"),),
    "generic": (Way("generic"),),
    "auto": (Way("native"), Way("generic", "packets reach the program late: several times slower")),
}


def _xdp(device: Device) -> Rule:
    shared = device.attach == "dispatcher"
    possible = (Way("dispatcher"),) if shared else _XDP_WAYS[device.mode]
    ways = tuple(Way(f"{way.probe}:{device.name}", way.loses) for way in possible)
    return Rule(
        f"XDP on {device.name}",
        ways,
        f"load balancer, mode: {device.mode}{', attach: dispatcher' if shared else ''}",
        "the load balancer can't be attached",
        required=True,
    )


# ---- Programs and files --------------------------------------------------------------------------

# Libraries are asked what they can do: those have rules above.
OUTSIDE = tuple(
    Rule(need.name, (Way(f"outside:{need.name}"),), need.needed_by, need.loses)
    for need in declared()
    if need.needed_by and not is_library(need.name)
)
