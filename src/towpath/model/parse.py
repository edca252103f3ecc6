# SPDX-License-Identifier: Apache-2.0
"""Text and plain data in, checked objects out; refused whole if anything is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from towpath.capabilities import sections
from towpath.model.decode import Findings, Tree, build, decode
from towpath.model.kinds import shown
from towpath.model.problems import MORE, ConfigError, FieldPath, Problem, field_path
from towpath.model.rules import (
    Differences,
    check_capacity,
    check_foreign,
    check_service_tree,
    recommended_size,
)
from towpath.model.service import Backend, Service
from towpath.model.settings import Config, Limits
from towpath.model.snat import missing
from towpath.model.sound import Sound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from towpath.capabilities import Capability, Origin
    from towpath.model.yamltext import Lines


T = TypeVar("T")


def parse_config(text: str, filename: str) -> Config:
    """Read a configuration file's text. ``filename`` is for messages only.

    Raises ConfigError with every problem that the text has.
    """
    return parse_text(Config, text, filename, _config)


def make_config(raw: Mapping[str, Any]) -> Config:
    """Make a configuration of plain data, of objects, or of both. Raises ConfigError."""
    return _made(Config, lambda found: _config(raw, found))


def parse_services(text: str, filename: str) -> tuple[Service, ...]:
    """Read a text that has ``services`` and nothing else, as ``service apply`` takes it.

    Raises ConfigError with every problem that the text has.
    """
    return parse_text(_ServiceFile, text, filename, _service_file).services


def parse_service(raw: Mapping[str, Any]) -> Service:
    """Make a service of plain data, such as JSON. Raises ConfigError."""
    return _made(Service, lambda found: _service(raw, (), found))


def parse_with_services(cls: type[T], raw: object) -> T:
    """Make an object that has ``services``, which must not clash. Raises ConfigError."""
    return _made(cls, lambda found: _with_services(cls, raw, found))


def parse_backends(raw: object) -> tuple[Backend, ...]:
    """Make backends of a list of plain data. Raises ConfigError; paths start as a service's do."""
    if not isinstance(raw, list):
        raise ConfigError([Problem(f"{shown(raw)} is not a list; allowed: a list of backends")])
    return _made(_Backends, lambda found: decode(_Backends, {"backends": raw}, (), found)).backends


def service_problems(service: Service) -> tuple[Problem, ...]:
    """Return what is wrong with one service by itself; paths start at its fields."""
    if _SOUND.has(service):
        return ()
    return _read_problems(service)


def _read_problems(service: Service) -> tuple[Problem, ...]:
    found = Findings()
    found.within(lambda: _service(service, (), found))
    return _problems(found)


_SOUND = Sound(lambda service: not _read_problems(service))


def check_service(service: Service) -> None:
    """Raise ConfigError if anything is wrong with one service by itself."""
    if problems := service_problems(service):
        raise ConfigError(problems)


def check_services(
    services: Iterable[Service],
    limits: Limits | None = None,
    *,
    checked: Iterable[Service] = (),
) -> None:
    """Raise ConfigError if a service is wrong, two clash, or they exceed ``limits``.

    ``checked``: objects that were found right before. If they are among the services,
    only clashes of theirs are looked for.
    """
    right = {id(service) for service in checked}
    found = Findings()

    def check() -> None:
        trees = [
            _known(one)
            if id(one) in right or _SOUND.has(one)
            else _service(one, ("services", i), found)
            for i, one in enumerate(services)
        ]
        differences = Differences(("services",), found)
        for index, tree in enumerate(trees):
            differences.check(index, tree)
        if limits is not None:
            check_capacity(trees, decode(Limits, limits, ("limits",), found) or {}, found)

    found.within(check)
    if found.items:
        raise ConfigError(_problems(found))


def advice(service: Service) -> Problem | None:
    """Say when a table is so small that shares stray from the weights by over 1 %."""
    sharing = sum(1 for backend in service.backends if backend.weight)
    best = recommended_size(sharing)
    if service.table_size >= best:
        return None
    message = (
        f"{service.table_size} slots for {sharing} backends: shares stray from the weights "
        f"by more than 1 %; recommended: {best}"
    )
    return Problem(message, "table_size")


def problems_of(errors: Sequence[Mapping[str, Any]]) -> tuple[Problem, ...]:
    """Turn ``errors()`` of a pydantic or FastAPI validation error into problems."""
    return tuple(_pydantic_problem(error) for error in errors)


_PYDANTIC = {
    "missing": "is missing",
    "missing_argument": "is missing",
    "extra_forbidden": "unknown key",
    "unexpected_keyword_argument": "unknown key",
    "dataclass_type": "is not a mapping",
    "tuple_type": "is not a list",
}


def _pydantic_problem(error: Mapping[str, Any]) -> Problem:
    path: FieldPath = tuple(error["loc"])
    if path[:1] == ("body",):
        path = path[1:]
    return Problem(_PYDANTIC.get(error["type"], error["msg"]), field_path(path))


@dataclass(frozen=True, slots=True)
class _ServiceFile:
    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class _Backends:
    backends: tuple[Backend, ...]


def _known(service: Service) -> Tree:
    """Return the tree of a service that is right, without what no other service is held against."""
    return {
        "name": service.name,
        "vip": service.vip,
        "port": service.port,
        "protocol": service.protocol,
        "scope": service.scope,
        "backends": service.backends,
        "table_size": service.table_size,
        "allow_from": service.allow_from,
        "route_from": [
            {"sources": each.sources, "backends": each.backends} for each in service.route_from
        ],
    }


def _service(raw: object, path: FieldPath, found: Findings) -> Tree | None:
    tree = decode(Service, raw, path, found)
    if tree is not None:
        check_service_tree(tree, path, found)
    return tree


def _service_file(raw: object, found: Findings) -> Tree | None:
    return _with_services(_ServiceFile, raw, found)


def _config(raw: object, found: Findings) -> Tree | None:
    others = sections()
    tree = _with_services(Config, raw, found, others)
    if tree is None or not isinstance(raw, Mapping):
        return None
    devices = tree.get("devices", [])
    if "devices" in raw and devices == []:
        found.add(("devices",), "is empty; allowed: one device or more")
    elif not raw:
        # Nothing at all is no wish, but a file that something else has emptied.
        found.add(("devices",), "is missing")
    elif "devices" not in raw and "socket" not in raw and tree.get("services"):
        found.add(("devices",), "is missing, but there are services; allowed: one device or more")
    _check_devices(devices, found)
    check_capacity(tree.get("services", []), tree.get("limits", {}), found)
    _check_snat(tree.get("services", []), tree.get("snat"), found)
    _check_unwrap(tree.get("unwrap"), found)
    check_foreign(tree.get("checks"), found)
    trees = {name: _section(of, raw[name], found) for name, of in others.items() if name in raw}
    for name in trees:
        beside: Callable[[Tree, Mapping[str, Tree | None], Findings], None] | None
        if beside := others[name].find("model", "check_beside"):
            beside(tree, trees, found)
    if not found.items:
        tree["sections"] = {
            name: build(others[name].load("model", "Section"), each)
            for name, each in trees.items()
            if each is not None
        }
    return tree


def _section(of: Capability | Origin, raw: object, found: Findings) -> Tree | None:
    """Read the section of a capability or a source; what is empty has its defaults."""
    tree = decode(of.load("model", "Section"), {} if raw is None else raw, (of.name,), found)
    check: Callable[[Tree, FieldPath, Findings], None] | None = of.find("model", "check")
    if tree is not None and check is not None:
        check(tree, (of.name,), found)
    return tree


def _check_unwrap(unwrap: Tree | None, found: Findings) -> None:
    """Check that tunnels have somewhere to end."""
    wrong = ("unwrap", "addresses")
    asked = [key for key in ("gre", "udp_ports") if unwrap and unwrap.get(key)]
    if unwrap and asked and unwrap.get("addresses", ()) == ():
        found.add(
            wrong, f"is missing, but there is {asked[0]}; allowed: outer destinations of tunnels"
        )


def _check_snat(services: Sequence[Tree | None], snat: Tree | None, found: Findings) -> None:
    """Check that there are addresses for the services that need them."""
    for index, service in enumerate(services):
        if not service or service.get("forwarding") != "snat" or "vip" not in service:
            continue
        version = service["vip"].version
        if snat is not None and not snat.get(f"ipv{version}", True):
            found.add(("services", index, "forwarding"), missing(version))


def _with_services(
    cls: type, raw: object, found: Findings, others: Collection[str] = ()
) -> Tree | None:
    """Decode what has services, and check these one by one: where thousands clash, few are read."""
    listed = raw.get("services") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(listed, list | tuple):
        return decode(cls, raw, (), found, others)
    tree = decode(cls, {**raw, "services": ()}, (), found, others)
    differences = Differences(("services",), found)
    services = []
    for index, each in enumerate(listed):
        services.append(_service(each, ("services", index), found))
        differences.check(index, services[-1])
    return None if tree is None else {**tree, "services": services}


def _check_devices(devices: Sequence[Tree | None], found: Findings) -> None:
    for index, device in enumerate(devices):
        if device and device.get("priority") is not None and device.get("attach") == "link":
            found.add(
                ("devices", index, "priority"),
                "orders the programs of a dispatcher; allowed: none, or attach: dispatcher",
            )
    seen: set[str] = set()
    for index, device in enumerate(devices):
        name = device.get("name") if device else None
        if name in seen:
            found.add(("devices", index), f"{name} is listed twice; allowed: once")
        if name is not None:
            seen.add(name)


def parse_text(
    cls: type[T], text: str, filename: str, check: Callable[[object, Findings], Tree | None]
) -> T:
    """Make an object of YAML by the tree that ``check`` returns. ConfigError: what is wrong."""
    # Here, since whoever only names a dataclass should not wait for them.
    import yaml  # noqa: PLC0415

    from towpath.model.yamltext import read_lines, read_yaml, yaml_problem  # noqa: PLC0415

    def checked(found: Findings) -> Tree | None:
        raw = read_yaml(text, found)
        return check({} if raw is None else raw, found)

    try:
        return _made(cls, checked, filename, lambda: read_lines(text))
    except yaml.YAMLError as error:
        line, message = yaml_problem(error)
        raise ConfigError([Problem(message, "", filename, line)]) from None


def _made(
    cls: type[T],
    check: Callable[[Findings], Tree | None],
    filename: str | None = None,
    read_lines: Callable[[], Lines] | None = None,
) -> T:
    """Make the object of the tree that ``check`` returns. ConfigError: it found something."""
    found = Findings()
    tree = found.within(lambda: check(found))
    if tree is None or found.items:
        raise ConfigError(_problems(found, filename, read_lines() if read_lines else None))
    return build(cls, tree)


def _problems(
    found: Findings, filename: str | None = None, lines: Lines | None = None
) -> tuple[Problem, ...]:
    problems = [
        Problem(message, field_path(path), filename, lines.of(path) if lines else None)
        for path, message in found.items
    ]
    problems.sort(key=lambda problem: problem.line or 0)
    return (*problems, MORE) if found.more else tuple(problems)
