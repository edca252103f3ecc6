# SPDX-License-Identifier: Apache-2.0
"""What a load balancer has on its machine besides its tables, and how it follows changes there.

Devices, their addresses and VLANs, what others have switched, detached or unpinned: all of it was
one thing when the load balancer came up and may be another by now. `Host.follow` looks, and puts
right what can be; what can't is among ``troubles``. docs/operations.md lists what is followed.
"""

from __future__ import annotations

import logging
import select
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.core.lb.steps import AddBackends
from towpath.datapath.attach.places import Places
from towpath.datapath.lb.outer_source import Vips, alike, fill_settings
from towpath.datapath.local.path import detach as detach_local
from towpath.datapath.maps.pins import HOST, LINKS, LOCAL, MAPS, NAMES, NEXT, held
from towpath.datapath.program.attachment import Attachment
from towpath.datapath.program.forwarding import Forwarding
from towpath.datapath.program.switches import Switches
from towpath.datapath.program.tags import Tags
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.links import xdp_mode
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.errors import KernelError
from towpath.kernel.net.devices import Devices
from towpath.kernel.net.netns import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from towpath.core.lb.plan import Transition
    from towpath.datapath.address import Address
    from towpath.datapath.health.path import HealthPath
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.local.node import LocalNode
    from towpath.datapath.maps.pins import Hold
    from towpath.datapath.program.egress import Egress
    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.net.sysctl import Family
    from towpath.model.settings import Device, Source

log = logging.getLogger(__name__)

_SECONDS = 1.0
"""Between two looks at what nobody tells."""
_FAMILIES: dict[int, Family] = {4: "ipv4", 6: "ipv6"}


class Host(Closeable):
    """The machine of a load balancer with these ``wishes`` for devices and outer sources.

    ``others`` are sent packets in tunnels as backends are. `prepare` for the services that there
    are, `attach`, and then `follow`. Not thread-safe, but for what is said to be. KernelError.
    """

    def __init__(
        self,
        wishes: Sequence[Device],
        source: Source,
        pins: Path | None,
        others: Iterable[Address] = (),
    ) -> None:
        self._wishes = wishes
        self._others = alike(others)
        self._source = source
        self._pins = pins
        self._seen = -1
        self._looked = 0.0
        self._families: frozenset[Family] = frozenset()
        self._backends: list[Address] = []
        self._vips = Vips()
        self._failed: dict[str, str] = {}
        self.repairs = 0
        """How often something was pinned again that others had unpinned."""
        with ExitStack() as undo:
            # Indexes and settings are this namespace's, wherever a script's thread is later.
            self._home = undo.enter_context(Home())
            self.devices = undo.enter_context(Devices())
            self.switches = Switches(self.devices, Notes(pins / HOST if pins else None))
            self._forwarding = Forwarding(self.devices, self.switches)
            self._tags = Tags(self.devices, self.switches)
            self._undo = undo.pop_all()

    # ---- the beginning ---------------------------------------------------------------------------

    def attach(self, program: LoadedProgram, contents: Contents, egress: Egress) -> Attachment:
        """Set and write what the program needs, and put it on the devices. KernelError.

        Nothing is set then that wasn't before.
        """
        self._program, self._contents, self._egress = program, contents, egress
        try:
            found = map(self.devices.named, (each.name for each in self._wishes))
            self._read_services()
            self._forward([each.index for each in found if each is not None])
            self._choose_sources()
            # Before the first packet; what some drivers can is only known once they have it.
            self._egress.follow(dict(self._expected()))
            self.attachment = Attachment(
                program, self._wishes, self.devices, self._tags, self._pins
            )
            with suppress(KernelError, OSError):  # again when it is followed
                self._egress.follow(self.attachment.modes)
        except BaseException:
            self.switches.give_up()
            raise
        return self.attachment

    def follow_with(self, health: HealthPath, local: LocalNode, hold: Hold | None) -> None:
        """Follow these, too: the way of health checks, backends here, a directory of pins."""
        self._health, self._local, self._hold = health, local, hold

    # ---- what follows ----------------------------------------------------------------------------

    def follow(self, *, thoroughly: bool = False) -> None:
        """Put right what has changed. ``thoroughly``: also what only this process writes."""
        self._looked = time.monotonic()
        self._read_services()
        steps: dict[str, Callable[[], object]] = {
            "netlink": self.devices.read,
            "devices": self.attachment.follow,
            "settings": self.switches.forget_gone,
            "VLAN tags": lambda: self._tags.follow(self.attachment.devices),
            "ways out": lambda: self._egress.follow(self.attachment.modes, thoroughly=thoroughly),
            "forwarding": self._forward,
            "outer sources": self._choose_sources,
            "backends on this node": self._local.follow,
            "health checks": self._health.follow,
            "pins": self._pin_again,
        }
        failed = {}
        with self._home.entered():
            for name, step in steps.items():
                try:
                    step()
                except (KernelError, OSError) as error:
                    failed[name] = f"{name}: {error}"
        for name, trouble in failed.items():
            if self._failed.get(name) != trouble:
                log.warning("%s", trouble)
        self._failed = failed

    @property
    def is_due(self) -> bool:
        """Whether something was told since `follow` has looked, or it has not for a while."""
        waiting = select.poll()
        waiting.register(self.devices, select.POLLIN)
        return time.monotonic() >= self._looked + _SECONDS or bool(waiting.poll(0))

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong and can't be put right. For any thread."""
        devices = (each.trouble for each in self.attachment.status)
        return (
            *(each for each in devices if each),
            *self._forwarding.troubles,
            *self._tags.troubles,
            *self._local.troubles,
            *self._failed.values(),
        )

    def _read_services(self) -> None:
        """Note what matters here of the services, when they are others than before."""
        if self._seen == self._contents.version:
            return
        self._seen = self._contents.version
        served = self._contents.served
        versions = served.versions.union(each.version for each in self._others)
        self._families = frozenset(_FAMILIES[version] for version in versions)
        self._backends = alike((*served.towards(), *self._others))
        self._vips = served.vips

    def prepare(self, transition: Transition) -> None:
        """Be ready for what services will be, before packets get to know of them.

        For backends of a family that none was of: with forwarding, and an outer source. For a VIP
        that this node has as well: with an outer source that isn't it.
        """
        added = [
            backend.address
            for step in transition.steps
            if isinstance(step, AddBackends)
            for backend in step.backends
        ]
        families = self._families.union(_FAMILIES[each.version] for each in added)
        vips = [
            each.after.key.vip
            for each in transition.changes
            if each.after and not (each.before and each.before.key == each.after.key)
        ]
        own = (each.interface.ip for each in self.devices.addresses())
        if self._local.may_open(transition):
            with self._home.entered():
                self._local.prepare(transition)
        if families > self._families or (vips and any(map(Vips(vips).__contains__, own))):
            self._families = families
            self._vips = self._vips.with_more(vips)
            self._backends = alike((*self._backends, *added))
            with self._home.entered():
                self._forward()
                self._choose_sources()

    def _forward(self, indexes: Collection[int] | None = None) -> None:
        indexes = self.attachment.devices if indexes is None else indexes
        entrances = {each for index in indexes for each in self.devices.entrances(index)}
        self._forwarding.follow(entrances, self._families)

    def _choose_sources(self) -> None:
        """Have the program take outer sources that are right by now."""
        settings = self._program.maps["settings"]
        record = settings.lookup(0)
        before = record.tobytes()
        wished = (self.devices.named(each.name) for each in self._wishes)
        indexes = [index for each in wished if each for index in self.devices.entrances(each.index)]
        owned = self.devices.addresses(indexes)
        fill_settings(record, self._source, self._backends, self._vips, owned)
        if record.tobytes() != before:
            settings.update(0, record)

    def _expected(self) -> Iterator[tuple[int, str]]:
        """The devices that are there, and how the program runs on them or will."""
        for wish in self._wishes:
            found = self.devices.named(wish.name)
            if found is not None:
                wished = "generic" if wish.mode == "generic" else "native"
                yield found.index, xdp_mode(found.index) or wished

    def _pin_again(self) -> None:
        """Pin again what others have unpinned, so that the end of this process costs nothing."""
        if self._hold is None:
            return
        missing = [str(self._pins)] if self._hold.again() else []
        missing += self._program.tables.pin_again()
        missing += self.attachment.pin_again()
        missing += self.switches.note_again()
        if missing:
            self.repairs += 1
            log.warning("pins were removed by somebody else: %s; pinned again", ", ".join(missing))

    # ---- the end ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take the program off the devices, and set back what was set."""
        with self._home.entered():
            self._local.detach()
            self.attachment.detach()
            self.switches.restore()

    def let_go(self) -> None:
        """What isn't pinned is detached, and the devices are as they were. Twice is once."""
        with self._home.entered():
            self.attachment.close()
            if self._pins is None:
                self.switches.restore()

    def close(self) -> None:
        """Follow no longer. Twice is once."""
        self.switches.leave()
        self._undo.close()


def detach_pinned(pins: Path) -> None:
    """Take what an earlier process has left out of the kernel, and set back what it has set.

    KernelError: another process has it.
    """
    with held(pins), Devices() as devices:
        places = Places(pins / LINKS)
        for name in places.pinned():
            places.drop(name)
        Switches(devices, Notes(pins / HOST)).restore()
        detach_local(pins / LOCAL)
        for name in (LINKS, NEXT, MAPS, NAMES, HOST):
            remove_pins(pins / name)
