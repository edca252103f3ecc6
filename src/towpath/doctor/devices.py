# SPDX-License-Identifier: Apache-2.0
"""What a device can do: nothing is detached, replaced or switched, and no hardware disturbed."""

from __future__ import annotations

import os
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.doctor import permissions
from towpath.doctor.capability import Answer, either, no, unprobed, yes
from towpath.kernel.bpf import dispatched, links, probe
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.dispatcher import opened, refusing
from towpath.kernel.bpf.programs import Program
from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, describe_errno
from towpath.kernel.net import interfaces
from towpath.kernel.net.devices import Devices
from towpath.kernel.net.offloads import RX_VLAN
from towpath.kernel.net.xdp_features import (
    XdpFeatures,
    is_disturbed,
    try_native,
    xdp_features,
)

if TYPE_CHECKING:
    from towpath.kernel.bpf.attached import AttachedProgram
    from towpath.kernel.net.sysctl import Family

# What the load balancer's program is called in the kernel, and nobody else's.
_OWN = "towpath_lb"
# Bytes of an IP packet that every driver's programs have in one piece, if not more.
_LINEAR = 3400
_SILENT = "this kernel does not tell what drivers can"
_SYSCTL = Path("/proc/sys/net")


def native(_: str, index: int) -> Answer:
    """XDP in the driver."""
    attached = _attached(index)
    if attached is not None:
        running = links.xdp_mode(index)
        found = Answer(running == "native", f"attached in {running} mode")
        return found if attached.works else attached
    return _told(index) if is_disturbed(index) else _tried(index)


def _tried(index: int) -> Answer:
    if obstacle := permissions.obstacle():
        return unprobed(obstacle)
    error = try_native(index)
    if error is None:
        return no("a program is attached already")
    if not error:
        return yes("native mode")
    return no(f"its driver refuses native mode: {describe_errno(error)}{_large(index)}")


def _large(index: int) -> str:
    """What may be the reason for a driver to refuse."""
    mtu = interfaces.mtu(index)
    return f"; its MTU is {mtu}" if mtu > _LINEAR else ""


def _told(index: int) -> Answer:
    """What the driver of a device says that isn't tried, since attaching may reset it."""
    features = xdp_features(index)
    if features is None:
        return unprobed(f"{_SILENT}, and a trial would disturb a device that is up")
    if XdpFeatures.BASIC not in features:
        return no("no native mode in its driver")
    if interfaces.mtu(index) > _LINEAR and XdpFeatures.FRAGMENTS not in features:
        return no(f"its driver takes no frames in fragments{_large(index)}")
    return yes("native mode, its driver says; not tried, which would reset it")


def generic(_: str, index: int) -> Answer:
    """XDP in the kernel's own stack, which every device has unless its place is taken."""
    attached = _attached(index)
    if attached is not None:
        return yes(f"attached in {links.xdp_mode(index)} mode") if attached.works else attached
    if obstacle := permissions.obstacle(namespace=True):
        return unprobed(obstacle)
    return either(probe.xdp_link(), "generic mode", "no bpf_link for XDP")


def dispatcher(_: str, index: int) -> Answer:
    """A dispatcher that calls the load balancer: one that is there, or a new one."""
    if obstacle := permissions.obstacle():
        return unprobed(obstacle)
    if reason := dispatched.why_not():
        return no(reason)
    try:
        there = opened(index)
    except KernelError as error:
        return no(str(error))
    if there is None:
        return yes("a new one")
    with there:
        names = ", ".join(each.program.name for each in there.components)
        found = f"{there.mode} dispatcher, version {there.version}, which calls {names}"
        none = there.mode == "native" and probe.fragments() and refusing(there.components)
        return yes(f"{found}; of frames in fragments {none}" if none else found)


def _attached(index: int) -> Answer | None:
    """Whether the program on a device is a load balancer's; None when there is no program."""
    number = links.xdp_program_id(index)
    if not number:
        return None
    try:
        with Program.from_id(number) as program:
            name = program.name
    except KernelError as error:
        return unprobed(f"program {number} is attached: {error}")
    if name != _OWN:
        return no(f"program {name} (id {number}) is attached already")
    return yes()


def programs(_: str, index: int) -> Answer:
    """Who is attached, and where: a load balancer and whatever else its packets meet."""
    there = tuple(Inventory().device(index))
    by_hook = groupby(there, key=attrgetter("hook"))
    found = [f"{hook}: {', '.join(map(_described, rows))}" for hook, rows in by_hook]
    return Answer(works=True, found="; ".join(found) or "none", attached=there)


def _described(program: AttachedProgram) -> str:
    return f"{program.how} {program}"


def redirect_target(_: str, index: int) -> Answer:
    """XDP may send packets out of this one that came in on others; or, if it is a veth, on it."""
    features = xdp_features(index)
    if features is None:
        return unprobed(f"{_SILENT}; the load balancer tries it when it begins")
    if XdpFeatures.TARGET in features:
        if XdpFeatures.TARGET_FRAGMENTS in features or interfaces.mtu(index) <= _LINEAR:
            return yes("its driver takes them")
        return yes("its driver takes them, but for frames in fragments")
    if links.xdp_mode(index) == "native" or XdpFeatures.BASIC not in features:
        return no("its driver does not take them")
    return unprobed("its driver does not take them now; some do once a program is attached")


def _first_name(device: str) -> str:
    """What the kernel calls a device that may be named by another name of its."""
    try:
        return interfaces.device_name(interfaces.device_index(device))
    except KernelError:
        return device


def by_the_kernel(_: str, index: int) -> Answer:
    """Whatever can't leave by XDP is handed to the kernel."""
    del index
    return yes("the kernel sends them")


def vlan_tags(_: str, index: int) -> Answer:
    """Tags are in the frame when XDP sees it, or can be."""
    with Devices() as devices:
        parts = devices.parts(index)
    if parts[0].kind == "veth":
        return unprobed("that is its peer's to say: tx-vlan-offload has to be off there")
    states = {(part.name, str(each)): each.state(part.name) for part in parts for each in RX_VLAN}
    stripped = {key: state for key, state in states.items() if state.on}
    if not stripped:
        return yes("in the frame")
    fixed = [f"{name} of {part}" for (part, name), state in stripped.items() if state.fixed]
    if fixed:
        return no(f"{', '.join(fixed)} can't be switched off")
    names = ", ".join(sorted({name for _, name in stripped}))
    return yes(f"{names}: on, off while the load balancer is attached")


def forwarding(device: str, family: Family) -> Answer:
    """Forwarding is on, or may be switched on: the FIB answers for no other device."""
    path = _SYSCTL / family / "conf" / _first_name(device) / "forwarding"
    try:
        on = path.read_text().strip() != "0"
    except FileNotFoundError:
        return no("the device does not have that protocol")
    if on:
        return yes("on")
    if not permissions.held(CAP_NET_ADMIN):
        return unprobed("off, and this process lacks CAP_NET_ADMIN to switch it on")
    writable = os.access(path, os.W_OK)
    return either(writable, "off until a backend needs it", f"off, and {path} is read-only")
