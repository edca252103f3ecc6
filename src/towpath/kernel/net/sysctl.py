# SPDX-License-Identifier: Apache-2.0
"""Settings below /proc/sys/net: all that Towpath ever writes, and how.

docs/operations.md says when each is written and what else it changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint

Family = Literal["ipv4", "ipv6"]
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
_ROOT = Path("/proc/sys/net")  # of the calling thread's network namespace


class Sysctl(NamedTuple):
    """A setting that each device has."""

    family: Family
    name: str

    def __str__(self) -> str:
        return f"net.{self.family}.conf.*.{self.name}"

    def read(self, device: str) -> str:
        """Its value; ``device`` may be "all" or "default". KernelError: there is none."""
        try:
            return self._path(device).read_text(encoding="ascii").strip()
        except OSError as error:
            raise KernelError(f"read {self._of(device)}", error.errno or 0) from error

    def write(self, device: str, value: str) -> None:
        """Set it. KernelError: there is none, or it isn't allowed."""
        try:
            self._path(device).write_text(value, encoding="ascii")
        except OSError as error:
            hint = permission_hint(CAP_NET_ADMIN) if isinstance(error, PermissionError) else ""
            raise KernelError(f"set {self._of(device)}", error.errno or 0, hint) from error

    def devices(self) -> list[str]:
        """The devices that have it, without "all" and "default"."""
        try:
            found = (_ROOT / self.family / "conf").iterdir()
            return sorted(each.name for each in found if each.name not in {"all", "default"})
        except OSError:  # a kernel without IPv6
            return []

    def _path(self, device: str) -> Path:
        return _ROOT / self.family / "conf" / device / self.name

    def _of(self, device: str) -> str:
        return f"net.{self.family}.conf.{device}.{self.name}"


class NamespaceSysctl(NamedTuple):
    """A setting that each network namespace has, or the machine's first one for all."""

    family: Family
    name: str

    def __str__(self) -> str:
        return f"net.{self.family}.{self.name}"

    def read(self) -> str:
        """Its value in the calling thread's namespace. KernelError: there is none."""
        try:
            return (_ROOT / self.family / self.name).read_text(encoding="ascii").strip()
        except OSError as error:
            raise KernelError(f"read {self}", error.errno or 0) from error

    def write(self, value: str) -> None:
        """Set it there. KernelError: there is none, or it isn't allowed."""
        try:
            (_ROOT / self.family / self.name).write_text(value, encoding="ascii")
        except OSError as error:
            raise KernelError(f"set {self} to {value}", error.errno or 0) from error


CONGESTION_CONTROL = NamespaceSysctl("ipv4", "tcp_congestion_control")
ALLOWED_CONGESTION_CONTROL = NamespaceSysctl("ipv4", "tcp_allowed_congestion_control")
"""Only the first namespace's can be written."""

FORWARDING = {family: Sysctl(family, "forwarding") for family in FAMILIES}
ACCEPT_RA = Sysctl("ipv6", "accept_ra")
ACCEPT_LOCAL = Sysctl("ipv4", "accept_local")
RP_FILTER = Sysctl("ipv4", "rp_filter")

WRITTEN = (ACCEPT_RA, *FORWARDING.values(), ACCEPT_LOCAL, RP_FILTER)
"""All of devices that are ever written, in the order that they are set in.

The last is set back first.
"""
