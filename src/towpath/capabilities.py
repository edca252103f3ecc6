# SPDX-License-Identifier: Apache-2.0
"""What Towpath can do, and where desired services may come from: a line each.

A capability has the same name at every layer, and a module there: the section of the
configuration in ``model``, what an agent runs in ``agent``, what it needs of a kernel in
``doctor``, its commands in ``cli``. The line here says how these modules are called. None is
imported before it is needed: what isn't configured costs nothing. docs/design/capabilities.md
shows how to add one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model.settings import Config

Layer = Literal["model", "agent", "doctor", "cli"]


class Capability(NamedTuple):
    """Something that an agent can do."""

    name: str
    """Its section of the configuration, unless ``key`` says otherwise, and its command."""
    where: str
    """Its modules, with ``{layer}`` for the layer's name."""
    summary: str = ""
    """Its command's line in ``towpath --help``; empty: it has no command of its own."""
    key: str = ""
    """The field of Config that says whether it is configured, if it has no section."""
    also: tuple[str, ...] = ()
    """Sections that need it, whether or not that field is configured."""
    leaves: tuple[str, ...] = ()
    """What of it outlives an agent, as pins/NAME or directory/NAME below what ``state`` names; by
    default its own directory of pins."""

    def configured(self, config: Config) -> bool:
        """Whether an agent with this configuration has it."""
        if any(each in config.sections for each in self.also):
            return True
        return bool(getattr(config, self.key)) if self.key else self.name in config.sections

    def pins(self, config: Config) -> Path:
        """Where it pins what outlives an agent."""
        return config.state.pins if self.key else config.state.pins / self.name

    def left(self, config: Config) -> bool:
        """Whether an agent that had it has left something, in the kernel or on disk."""
        if not self.leaves:
            return self.pins(config).exists()
        roots = {"pins": config.state.pins, "directory": config.state.directory}
        paths = (each.partition("/") for each in self.leaves)
        return any((roots[root] / name).exists() for root, _, name in paths)

    def files(self) -> tuple[str, ...]:
        """What it leaves in the state directory: names, or what these begin with."""
        paths = (each.partition("/") for each in self.leaves)
        return tuple(name for root, _, name in paths if root == "directory")

    def load(self, layer: Layer, name: str) -> Any:
        """Return what its module in a layer calls ``name``."""
        return getattr(importlib.import_module(self.where.format(layer=layer)), name)

    def find(self, layer: Layer, name: str) -> Any:
        """Return the same, or None if there is no such module, or nothing in it called so."""
        return _find(self.where.format(layer=layer), name)

    def command(self) -> str:
        """Return where its command is, as ``module:attribute``."""
        return f"{self.where.format(layer='cli')}:command"


class Origin(NamedTuple):
    """Somewhere that services come from."""

    name: str
    """Who owns the services; also its section of the configuration, if it has one."""
    where: str
    """Its modules, as Capability has them."""
    label: str
    """What messages call it."""
    remove: str = ""
    """How a service that came from there is removed: a command, with ``{name}`` in it."""

    def load(self, layer: Layer, name: str) -> Any:
        """Return what its module in a layer calls ``name``."""
        return getattr(importlib.import_module(self.where.format(layer=layer)), name)

    def find(self, layer: Layer, name: str) -> Any:
        """Return the same, or None if there is no such module, or nothing in it called so."""
        return _find(self.where.format(layer=layer), name)


FILE, API = "file", "api"

CAPABILITIES: tuple[Capability, ...] = (
    Capability(
        "neigh",
        "towpath.{layer}.neigh",
        "Next hops, and whether they answer.",
        key="devices",
        leaves=("pins/links",),
    ),
    Capability(
        "lb",
        "towpath.{layer}.lb",
        key="devices",
        also=("socket", "kubernetes"),
        leaves=("pins/links", "pins/maps", "directory/state.db", "directory/limits.json"),
    ),
    Capability("socket", "towpath.{layer}.socket", "Services at the sockets of this node."),
    Capability(
        "bandwidth",
        "towpath.{layer}.bandwidth",
        "Limits of what pods send and receive.",
        leaves=(
            "pins/bandwidth",
            "directory/bandwidth.json",
            "directory/bandwidth-sourced.json",
        ),
    ),
    Capability(
        "masquerade",
        "towpath.{layer}.masquerade",
        "Source NAT of pods that leave the node.",
        leaves=("pins/masquerade", "directory/masquerade-sourced.json"),
    ),
    Capability("cgroup", "towpath.{layer}.cgroup", "Where programs of cgroups run, and which do."),
    # One line for each.
)

ORIGINS: tuple[Origin, ...] = (
    Origin(FILE, "towpath.{layer}.sources.file", "the configuration file"),
    Origin(API, "towpath.{layer}.sources.api", "the API", "towpath service delete {name}"),
    Origin("kubernetes", "towpath.{layer}.sources.kubernetes", "Kubernetes"),
    # One line for each.
)


def sections() -> dict[str, Capability | Origin]:
    """Return what may have a section of its own in the configuration, by the section's name."""
    capabilities = {each.name: each for each in CAPABILITIES if not each.key}
    return capabilities | {each.name: each for each in ORIGINS if each.name not in {FILE, API}}


def origin(name: str) -> Origin:
    """Return the source that is called so. KeyError: there is none."""
    found = next((each for each in ORIGINS if each.name == name), None)
    if found is None:
        raise KeyError(name)
    return found


def _find(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None
