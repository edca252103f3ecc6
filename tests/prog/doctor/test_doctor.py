# SPDX-License-Identifier: Apache-2.0
"""The diagnosis of the kernel that runs, against what this kernel says and does elsewhere.

Nothing here depends on which kernel it is.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from towpath.capabilities import CAPABILITIES
from towpath.cli.main import cli
from towpath.datapath.balancer import Balancer
from towpath.datapath.recorder.recorder import Recorder
from towpath.doctor import Capability, devices, doctor, judge, outside
from towpath.doctor.probes import PROBES, ask
from towpath.doctor.rules import OUTSIDE, rules
from towpath.kernel.bpf import pcap, probe
from towpath.kernel.bpf.links import attach_tc_ingress, attach_xdp, xdp_mode, xdp_program_id
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import Program
from towpath.kernel.bpf.sandbox import MTU, NAMES, sandbox
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import addresses, device_index, mtu
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.netns import new_netns
from towpath.kernel.net.xdp_features import XdpFeatures, xdp_features
from towpath.model import Backend, Config, Device, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from towpath.kernel.bpf.links import Attachment, Link

STATES = {"available", "fallback", "missing", "unknown"}


@cache
def diagnosed() -> dict[str, Capability]:
    """The diagnosis without a configuration, once."""
    return {each.name: each for each in doctor()}


@cache
def kernel_types() -> bytes:
    """The kernel's own BTF, in which the names of what it has occur."""
    return Path("/sys/kernel/btf/vmlinux").read_bytes()


def knows(name: str) -> bool:
    """Whether the kernel has a type, member or enumerator of that name."""
    return b"\0" + name.encode() + b"\0" in kernel_types()


def has(name: str) -> bool:
    """Whether the best way was found."""
    return diagnosed()[name].state == "available"


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of iproute2 in the calling thread's namespace."""
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def own_network() -> int:
    """What tells the calling thread's network namespace from others."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Move the test to a namespace with a veth pair that is down."""
    with new_netns():
        assert ip("ip", "link", "add", "tp0", "type", "veth", "peer", "tp1").returncode == 0
        yield "tp0", "tp1"


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["doctor", *arguments])


def run_without(*rights: str) -> tuple[int, dict[str, Any]]:
    """Run the command in a process that lacks these capabilities; its exit code and JSON."""
    command = ["setpriv", f"--bounding-set={','.join(f'-{right}' for right in rights)}"]
    command += [sys.executable, "-m", "towpath", "doctor", "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=240)
    return done.returncode, {each["name"]: each for each in json.loads(done.stdout)}


# ---- The kernel ----------------------------------------------------------------------------------


def test_a_supported_kernel_has_all_that_is_needed() -> None:
    """Nothing needed is missing where the load balancer's tests pass; root gets to know all."""
    for capability in diagnosed().values():
        assert not capability.fatal, capability
        assert capability.state != "unknown", capability


def test_every_way_has_its_probe() -> None:
    """And every probe is some way's."""
    devices = tuple(Device("lo", mode) for mode in ("auto", "native", "generic"))
    devices += (Device("lo", attach="dispatcher"),)
    vip, backend = ip_address("203.0.113.10"), ip_address("192.0.2.11")
    services = (Service("web", vip, 80, Protocol.TCP, (Backend(backend),)),)
    config = Config(devices=devices, services=services)
    asked = {
        way.probe.partition(":")[0]
        for some in (None, config)
        for rule in rules(some)
        for way in rule.ways
    }
    more = (set(each.find("doctor", "PROBES") or ()) for each in CAPABILITIES)
    assert set(PROBES) <= asked <= set(PROBES).union(*more)


def test_each_probe_of_the_kernel_answers() -> None:
    """Also those that no verdict on this kernel depends on."""
    of_devices = {"native", "generic", "redirect_target", "forwarding4", "forwarding6", "programs"}
    of_devices |= {"by_the_kernel", "vlan_tags", "dispatcher"}
    for name in set(PROBES) - of_devices - {"outside", "ways"}:
        answer = ask(name)
        assert answer.works is not None, (name, answer)
        assert answer.found, name


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("MTU from bpf_fib_lookup", "mtu_result"),
        ("source address from bpf_fib_lookup", "BPF_FIB_LOOKUP_SRC"),
        ("programs at tc ingress", "BPF_TCX_INGRESS"),
        ("ring buffer", "BPF_MAP_TYPE_RINGBUF"),
        ("programs at connect()", "BPF_CGROUP_INET4_CONNECT"),
        ("bpf_redirect_neigh", "BPF_FUNC_redirect_neigh"),
        ("copies of frames", "BPF_FUNC_xdp_load_bytes"),
    ],
)
def test_what_is_found_is_what_the_kernel_is_made_of(capability: str, name: str) -> None:
    """The probe and the kernel's own types say the same."""
    assert has(capability) == knows(name)


def test_tc_programs_go_where_the_probe_says(pair: tuple[str, str]) -> None:
    """A TCX link if there are any, else a filter."""
    with BpfObject.packaged("lb") as loaded:
        loaded.autoload("towpath_lb", on=False)
        loaded.load()
        program = loaded.programs["towpath_handoff"]
        with attach_tc_ingress(program, device_index(pair[0])) as attached:
            assert (attached.mode == "tcx") == has("programs at tc ingress")


def test_managed_neighbours_are_those_that_iproute2_sees(pair: tuple[str, str]) -> None:
    """Kernels that don't know them make an ordinary entry without a word."""
    neighbour = ("192.0.2.9", "dev", pair[0])
    for end in reversed(pair):  # a device that loses its carrier loses its neighbours
        ip("ip", "link", "set", end, "up")
    assert ip("ip", "neigh", "add", *neighbour, "managed").returncode == 0
    shown = ip("ip", "neigh", "show", "nud", "all", *neighbour).stdout
    assert ("managed" in shown) == has("managed neighbours")


def test_fq_is_there_if_tc_can_add_it(pair: tuple[str, str]) -> None:
    """Module or built in, or neither."""
    added = ip("tc", "qdisc", "add", "dev", pair[0], "root", "fq")
    assert (added.returncode == 0) == has("fq")


def test_programs_are_described() -> None:
    """Each with the size of its machine code."""
    found = diagnosed()["load balancer program"].found
    assert "towpath_lb" in found
    assert "towpath_handoff" in found
    assert "bytes jited" in found
    assert "towpath_decap" in diagnosed()["decapsulation program"].found
    assert "towpath_recorder" in diagnosed()["recorder program"].found


def test_source_nat_is_verified_apart() -> None:
    """The load balancer's program doesn't have it unless there is something to translate to."""
    plain, translating = (
        int(re.findall(r"towpath_lb .*?(\d+) bytes jited", diagnosed()[name].found)[0])
        for name in ("load balancer program", "source NAT program")
    )
    assert plain + 2000 < translating


def test_a_recorder_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the kernel's words."""

    def refuse(*_: object) -> None:
        raise KernelError("load recorder.bpf.o", 7)

    monkeypatch.setattr(Recorder, "tried", refuse)
    for key in ("recorder_program", "recorder_program_of_source_nat"):
        answer = ask(key)
        assert answer.works is False
        assert answer.found.startswith("load recorder.bpf.o: ")


def test_expressions_need_libpcap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that has it."""
    assert "libpcap version" in ask("libpcap").found
    monkeypatch.setattr(pcap, "_SONAMES", ("libabsent.so.0",))
    pcap.library.cache_clear()
    try:
        answer = ask("libpcap")
        assert answer.works is False
        assert "install the package libpcap0.8" in answer.found
    finally:
        pcap.library.cache_clear()


def test_rules_by_mark_are_there_if_iproute2_can_add_one(pair: tuple[str, str]) -> None:
    """In this namespace, which goes with the test."""
    del pair
    added = [ip("ip", f"-{v}", "rule", "add", "fwmark", "7", "table", "7") for v in (4, 6)]
    assert all(each.returncode == 0 for each in added) == has("policy routing")


def test_pins_have_a_place_where_a_bpf_file_system_is_or_would_be_mounted() -> None:
    """That is at or below /sys/fs/bpf; anywhere else it has to be there."""
    for key, works in (
        ("bpffs:/sys/fs/bpf/absent/maps", True),
        ("bpffs:/tmp/absent/maps", False),
        ("bpffs can be mounted:/sys/fs/bpf/absent", True),
        ("bpffs can be mounted:/tmp/absent", False),
    ):
        assert ask(key).works == works, key


# ---- The network that is tried in ----------------------------------------------------------------


def test_the_sandbox_is_a_network_of_its_own() -> None:
    """Two devices that are up, one with an address; gone afterwards."""
    before = own_network()
    with sandbox() as network:
        assert own_network() != before
        assert (network.near, network.far) == tuple(map(device_index, NAMES))
        assert mtu(network.near) == MTU
        assert "192.0.2.1/24" in map(str, addresses(network.near))
    assert own_network() == before


def test_netlink_errors_are_the_kernels() -> None:
    """A request that is refused raises OSError with the kernel's number."""
    with Netlink(ROUTE) as netlink, pytest.raises(OSError, match="No such device"):
        netlink.ask(18, bytes.fromhex("00000000ffffff7f0000000000000000"))


# ---- Devices -------------------------------------------------------------------------------------


def of_devices(*wanted: Device) -> dict[str, Capability]:
    """The lines of these devices; nothing else is probed."""
    config = Config(devices=wanted)
    names = {device.name for device in wanted}
    some = [rule for rule in rules(config) if rule.name.rpartition(" ")[2] in names]
    return {rule.name: judge(rule, ask) for rule in some}


def test_a_device_that_is_down_is_tried(pair: tuple[str, str]) -> None:
    """Native XDP on veth is known on every kernel then, and nothing stays attached."""
    found = of_devices(Device(pair[0], "native"))[f"XDP on {pair[0]}"]
    assert found.state == "available", found
    assert xdp_program_id(device_index(pair[0])) == 0


def test_a_device_of_software_is_tried_when_it_is_up(pair: tuple[str, str]) -> None:
    """Whatever its driver says of itself: nothing is reset there."""
    for each in pair:
        ip("ip", "link", "set", each, "up")
    found = of_devices(Device(pair[0], "native"))[f"XDP on {pair[0]}"]
    assert (found.state, found.found) == ("available", "native mode")
    assert xdp_program_id(device_index(pair[0])) == 0


def test_an_mtu_that_takes_fragments(pair: tuple[str, str]) -> None:
    """What the driver answers is what an agent would meet, with the MTU that may be the reason."""
    for each in pair:
        ip("ip", "link", "set", each, "up", "mtu", "9000")
    found = of_devices(Device(pair[0]))[f"XDP on {pair[0]}"]
    assert (found.state == "available") == probe.fragments()
    with Balancer([Device(pair[0])]) as balancer:
        mode = xdp_mode(device_index(pair[0]))
        assert (mode == "native") == probe.fragments()
        (told,) = balancer.device_status
        assert (told.mode, bool(told.why_generic)) == (mode, not probe.fragments())
    if not probe.fragments():
        assert "ERANGE" in found.found
        assert "its MTU is 9000" in found.found


def test_what_a_driver_refuses_is_told() -> None:
    """A veth with fewer receive queues than its peer has of the other kind."""
    with new_netns():
        pair = "tp0 numrxqueues 1 numtxqueues 1 type veth peer name tp1 numtxqueues 4"
        assert ip("ip", "link", "add", *pair.split()).returncode == 0
        found = of_devices(Device("tp0"))["XDP on tp0"]
        assert found.state == "fallback"
        assert "ENOSPC" in found.found
        with Balancer([Device("tp0")]) as balancer:
            (told,) = balancer.device_status
            assert told.mode == "generic"
            assert "ENOSPC" in (told.why_generic or "")


def test_a_device_without_native_xdp_falls_back(pair: tuple[str, str]) -> None:
    """The loopback device of this namespace, which is down, has none."""
    del pair
    found = of_devices(Device("lo"))["XDP on lo"]
    refused = "its driver refuses native mode: Operation not supported (EOPNOTSUPP)"
    said = f"generic mode ({refused}; its MTU is 65536)"
    assert (found.state, found.found) == ("fallback", said)
    assert of_devices(Device("lo", "native"))["XDP on lo"].fatal


def test_hardware_that_is_up_is_asked_but_not_tried(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel doesn't tell, nobody knows."""
    ip("ip", "link", "set", pair[0], "up", "mtu", "9000")
    monkeypatch.setattr(devices, "is_disturbed", lambda _: True)
    features = xdp_features(device_index(pair[0]))
    found = of_devices(Device(pair[0], "native"))[f"XDP on {pair[0]}"]
    assert found.state == ("unknown" if features is None else "available")
    if features is None:
        return
    assert "not tried" in found.found
    monkeypatch.setattr(devices, "xdp_features", lambda _: XdpFeatures.BASIC)
    found = of_devices(Device(pair[0], "native"))[f"XDP on {pair[0]}"]
    assert (found.state, found.found) == (
        "missing",
        "its driver takes no frames in fragments; its MTU is 9000",
    )


def test_tags_are_where_the_driver_has_them(pair: tuple[str, str]) -> None:
    """A veth's are its peer's to say; a device that strips none has them in the frame."""
    del pair
    ip("ip", "tuntap", "add", "tap0", "mode", "tap")
    tap = of_devices(Device("tap0"))["VLAN tags on tap0"]
    assert (tap.state, tap.found) == ("available", "in the frame")
    veth = of_devices(Device("tp0"))["VLAN tags on tp0"]
    assert (veth.state, "tx-vlan-offload" in veth.found) == ("unknown", True)


def test_another_program_in_its_place_is_named_and_left_alone(pair: tuple[str, str]) -> None:
    """The load balancer could not be attached."""
    index = device_index(pair[0])
    with BpfObject.packaged("lab_pass") as other:
        other.load()
        program = other.programs["pass"]
        with attach_xdp(program, index):
            found = of_devices(Device(pair[0]))[f"XDP on {pair[0]}"]
            assert found.fatal
            assert found.found == f"program pass (id {program.id}) is attached already"
            assert xdp_program_id(index) == program.id


def test_who_is_attached_to_a_device_is_told(pair: tuple[str, str]) -> None:
    """At each hook, by whomever."""
    line = f"programs on {pair[0]}"
    found = of_devices(Device(pair[0]))[line]
    assert (found.state, found.found, found.attached) == ("available", "none", ())
    with occupied(device_index(pair[0])) as (xdp, ingress):
        found = of_devices(Device(pair[0]))[line]
        assert not found.required
        assert found.found.startswith(f"xdp: native pass (id {xdp.program_id}, link {xdp.id}); ")
        there = f"{ingress.mode} towpath_handoff (id {ingress.program_id}"
        assert f"; tc ingress: {there}" in found.found
        assert [(each.hook, each.name) for each in found.attached] == [
            ("xdp", "pass"),
            ("tc ingress", "towpath_handoff"),
        ]
    absent = of_devices(Device("absent0"))["programs on absent0"]
    assert (absent.state, absent.fatal) == ("missing", False)


@contextmanager
def occupied(index: int) -> Iterator[tuple[Link, Attachment]]:
    """Attach something at XDP and at tc's ingress."""
    with BpfObject.packaged("lab_pass") as other, BpfObject.packaged("lb") as balancer:
        other.load()
        balancer.autoload("towpath_lb", on=False)
        balancer.load()
        with (
            attach_xdp(other.programs["pass"], index) as xdp,
            attach_tc_ingress(balancer.programs["towpath_handoff"], index) as ingress,
        ):
            yield xdp, ingress


@pytest.mark.thorough
def test_programs_get_all_that_is_known_of_who_is_attached(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    """In JSON, in the line of the device."""
    file = tmp_path / "towpath.yaml"
    file.write_text(f"devices: [{pair[0]}]\n")
    with occupied(device_index(pair[0])) as (xdp, _):
        done = run("--config", str(file), "-o", "json")
        lines = {each["name"]: each["attached"] for each in json.loads(done.stdout)}
        first, _ = lines.pop(f"programs on {pair[0]}")
        assert not any(lines.values())
        with Program.from_id(xdp.program_id) as program:
            assert first | {"loaded": ""} == {
                "hook": "xdp",
                "place": pair[0],
                "how": "native",
                "program_id": program.id,
                "name": "pass",
                "tag": program.tag,
                "loaded": "",
                "link_id": xdp.id,
                "pins": [],
            }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["loaded"])


def test_cgroups_are_where_this_machine_has_them() -> None:
    """Or it is said how to mount them."""
    mounted = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if " cgroup2 " in line
    ]
    found = diagnosed()["cgroups of version 2"]
    assert (found.state == "available") == bool(mounted)
    assert any(f" {found.found.removeprefix('mounted at ')} cgroup2 " in line for line in mounted)


@pytest.mark.thorough
def test_a_running_load_balancer_is_in_nobodys_way(pair: tuple[str, str]) -> None:
    """What is attached is ours, so it is known to work."""
    with Balancer([Device(pair[0])]):
        found = of_devices(Device(pair[0]))
        assert found[f"XDP on {pair[0]}"].state == "available"
        assert found[f"XDP on {pair[0]}"].found == "attached in native mode"
        assert found[f"IPv4 forwarding on {pair[0]}"].found == "off until a backend needs it"


def test_forwarding_is_looked_at_and_not_touched(pair: tuple[str, str]) -> None:
    """Off is as good as on, since the agent may switch it on."""
    setting = Path("/proc/sys/net/ipv4/conf") / pair[0] / "forwarding"
    for value, said in (("0", "off until a backend needs it"), ("1", "on")):
        setting.write_text(value)
        answer = devices.forwarding(pair[0], "ipv4")
        assert (answer.works, answer.found) == (True, said)
        assert setting.read_text().strip() == value


def test_a_device_may_be_named_by_another_name_of_its(pair: tuple[str, str]) -> None:
    """Settings are under its first one."""
    ip("ip", "link", "property", "add", "dev", pair[0], "altname", "tp-other-name")
    answer = devices.forwarding("tp-other-name", "ipv4")
    assert (answer.works, answer.found) == (True, "off until a backend needs it")
    found = of_devices(Device("tp-other-name"))["IPv4 forwarding on tp-other-name"]
    assert found.state == "available"


def test_redirects_are_known_where_the_kernel_tells(pair: tuple[str, str]) -> None:
    """A veth takes redirected packets once its peer has a program."""
    ip("ip", "link", "set", pair[0], "up")
    ip("ip", "link", "set", pair[1], "up")
    tells = xdp_features(device_index(pair[0])) is not None
    with BpfObject.packaged("lab_pass") as other:
        other.load()
        with attach_xdp(other.programs["pass"], device_index(pair[1]), "native"):
            found = of_devices(Device(pair[0]))[f"redirects to {pair[0]}"]
            assert found.state == ("available" if tells else "unknown")
    ip("ip", "link", "add", "br0", "type", "bridge")
    found = of_devices(Device("br0"))["redirects to br0"]
    assert found.state == ("fallback" if tells else "unknown")
    assert not tells or found.loses == "packets that leave there take longer"


# ---- The command ---------------------------------------------------------------------------------


_NET = Path("/proc/sys/net")


def machine() -> dict[str, Any]:
    """All that probing could have changed."""
    gc.collect()  # what tests before have let go of, and not closed, goes at any moment
    return {
        "files": sorted(Path("/proc/self/fd").iterdir()),
        "mounts": Path("/proc/self/mounts").read_text(),
        "network": own_network(),
        "links": ip("ip", "-d", "-o", "link").stdout,
        "queues": ip("tc", "qdisc").stdout,
        "neighbours": ip("ip", "neigh").stdout,
        "forwarding": {path: path.read_text() for path in _NET.glob("ipv[46]/conf/*/forwarding")},
        "pins": sorted(Path("/sys/fs/bpf").iterdir()),
    }


def test_a_program_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its package, and what does not work without."""
    (rule,) = (rule for rule in rules() if rule.name == "nft")
    found = judge(rule, ask)
    assert found.state == "available"
    assert found.found.endswith("/nft")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(outside, "_SYSTEM", "/nowhere")
    found = judge(rule, ask)
    assert (found.state, found.needed_by) == ("missing", "masquerade")
    assert (found.found, found.loses) == (
        "not there; the package nftables has it",
        "rules that packets don't pass aren't named; bench forward and masquerade don't run",
    )
    assert not found.fatal


@pytest.mark.thorough
def test_probing_leaves_nothing_behind(pair: tuple[str, str]) -> None:
    """Files, mounts, namespaces, devices, queues, neighbours, settings and pins are as before."""
    before = machine()
    kinds = ("native", "generic", "redirect_t", "forwarding", "programs", "by_the", "vlan", "disp")
    for name in (name for name in PROBES if name not in {"outside", "ways"}):
        of_a_device = name.startswith(kinds)
        ask(f"{name}:{pair[0]}" if of_a_device else name)
    doctor(Config(devices=(Device(pair[0]), Device(pair[1]))))
    assert machine() == before


@pytest.mark.thorough
def test_json_is_a_list_of_capabilities() -> None:
    """Seven fields each, their types, and an exit code of 0 when nothing needed is missing."""
    done = run("-o", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [each["name"] for each in found] == list(diagnosed())
    for each in found:
        texts = ["name", "state", "found", "needed_by", "loses"]
        assert list(each) == [*texts, "required", "attached"]
        assert each["state"] in STATES
        assert isinstance(each["required"], bool)
        assert all(isinstance(each[key], str) for key in texts)
        assert each["attached"] == []
        assert (each["loses"] == "") == (each["state"] == "available")


@pytest.mark.thorough
def test_a_configuration_that_cannot_work_is_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Exit code 1, every reason in one line, and the diagnosis all the same."""
    file = tmp_path / "towpath.yaml"
    file.write_text(f"devices: [{pair[0]}, absent0]\nstate: {{pins: /tmp/pins}}\n")
    done = run("--config", str(file))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "this configuration can't work here" in done.stderr
    assert "BPF file system: /tmp is not on a BPF file system" in done.stderr
    assert "XDP on absent0: no such device: absent0" in done.stderr
    assert f"XDP on {pair[0]}" in done.stdout
    assert f"XDP on {pair[0]}" not in done.stderr


@pytest.mark.thorough
def test_without_privileges_it_says_what_it_could_not_probe() -> None:
    """Permissions are missing, so most is unknown, and the reason is in each line."""
    code, found = run_without("all")
    assert code == 1
    assert "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN" in found["permissions"]["found"]
    assert found["libbpf"]["state"] == "available"
    assert found["bpf_fib_lookup"]["state"] == "unknown"
    assert "CAP_BPF" in found["bpf_fib_lookup"]["found"]
    beside = {rule.name for rule in OUTSIDE}  # is there or not, whoever asks
    missing = {name for name, each in found.items() if each["state"] == "missing"}
    assert missing - beside == {"permissions"}


@pytest.mark.thorough
def test_without_a_right_to_namespaces_programs_are_probed_all_the_same() -> None:
    """What needs a network of its own isn't known then."""
    code, found = run_without("sys_admin")
    assert code == 0
    assert found["permissions"]["state"] == "fallback"
    assert found["load balancer program"]["state"] == "available"
    assert found["XDP links"]["state"] == "unknown"
    assert "CAP_SYS_ADMIN" in found["XDP links"]["found"]


@pytest.mark.parametrize("wrong", [["--config", "/nonexistent"], ["-o", "xml"], ["more"]])
def test_wrong_usage_is_exit_code_2(wrong: list[str]) -> None:
    """And nothing is probed."""
    done = run(*wrong)
    assert (done.exit_code, done.stdout) == (2, "")
