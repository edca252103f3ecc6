# SPDX-License-Identifier: Apache-2.0
"""QUIC: what connection ids look like that name a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from towpath.model.kinds import Flag, Integer, OrNone, Word
from towpath.model.problems import field_path

if TYPE_CHECKING:
    from towpath.model.decode import Findings, Tree
    from towpath.model.problems import FieldPath

# Read by pydantic when it makes a schema of a dataclass.
_PYDANTIC = {"extra": "forbid", "use_attribute_docstrings": True}

ServerIds = Literal["quic-lb", "katran"]
MAX_LENGTH = 8
MAX_ROTATION = 6
"""7 says that an id names nobody."""
MAX_SERVER_ID = (1 << 8 * MAX_LENGTH) - 1
MAX_SERVER_IDS = 64
"""Of one backend."""
KATRAN_SERVER_IDS = 1, (1 << 31) - 1
"""0 names nobody, and what is higher is negative there."""


@dataclass(frozen=True, slots=True)
class Quic:
    """What connection ids look like that name a backend by its server_id."""

    __pydantic_config__: ClassVar[Any] = _PYDANTIC

    server_ids: Annotated[ServerIds, Word("quic-lb", "katran")] = "quic-lb"
    """quic-lb: as draft-ietf-quic-load-balancers has them, unencrypted. katran: as Katran has them,
    of all three versions."""
    length: Annotated[int | None, OrNone(Integer(1, MAX_LENGTH))] = None
    """quic-lb: bytes of a server's id. katran: none, as its versions say."""
    rotation: Annotated[int, Integer(0, MAX_ROTATION)] = 0
    """quic-lb: the configuration's number, an id's first three bits. Others name nobody."""
    length_self_description: Annotated[bool, Flag()] = False
    """quic-lb: the first byte's other bits say how many bytes follow it; ids in which that is wrong
    name nobody. false: they may be anything."""

    @property
    def allowed(self) -> tuple[int, int]:
        """The lowest and the highest id that a server can have."""
        return _allowed(self.server_ids, self.length)


def _allowed(server_ids: ServerIds, length: int | None) -> tuple[int, int]:
    if server_ids == "katran":
        return KATRAN_SERVER_IDS
    return 0, (1 << 8 * (length or MAX_LENGTH)) - 1


def check_quic_tree(service: Tree, path: FieldPath, found: Findings) -> None:
    """Check what spans the fields of a service's ``quic``, and its backends' ids."""
    backends = (*path, "backends")
    if (quic := service.get("quic")) is None:
        if "quic" in service:
            _refuse_ids(service.get("backends", ()), backends, found)
        return
    at = (*path, "quic")
    for name, allowed in (("protocol", "udp"), ("scope", "all")):
        given = service.get(name)
        if given not in {None, allowed}:
            found.add(at, f"is not for {name} {given}; allowed: none, or {name}: {allowed}")
    _check_form(quic, at, found)
    _check_ids(quic, service.get("backends", ()), backends, found)


def _refuse_ids(backends: Any, path: FieldPath, found: Findings) -> None:
    for index, backend in enumerate(backends):
        if backend and (ids := backend.get("server_id")):
            named = ", ".join(map(str, ids)) + (" is" if len(ids) == 1 else " are")
            found.add(
                (*path, index, "server_id"),
                f"{named} for connection ids, and the service has no quic; "
                "allowed: none, or a service with quic",
            )


def _check_form(quic: Tree, path: FieldPath, found: Findings) -> None:
    """Katran's ids say by themselves what QUIC-LB's are configured to be."""
    if quic.get("server_ids") == "katran":
        defaults = Quic.__dataclass_fields__
        for name in ("length", "rotation", "length_self_description"):
            if name in quic and quic[name] != defaults[name].default:
                found.add((*path, name), "is not for katran; allowed: with server_ids: quic-lb")
    elif "server_ids" in quic and "length" in quic and quic["length"] is None:
        found.add((*path, "length"), f"is missing; allowed: 1 to {MAX_LENGTH} bytes")


def _check_ids(quic: Tree, backends: Any, path: FieldPath, found: Findings) -> None:
    least, most = _allowed(quic.get("server_ids", "quic-lb"), quic.get("length"))
    first: dict[int, int] = {}
    for index, backend in enumerate(backends):
        at = (*path, index, "server_id")
        for server_id in backend.get("server_id", ()) if backend else ():
            if not least <= server_id <= most:
                found.add(at, f"{server_id} does not fit; allowed: {least} to {most}")
            elif server_id in first:
                also = field_path((*path, first[server_id]))
                found.add(at, f"{server_id} is that of {also}; allowed: one backend each")
            first.setdefault(server_id, index)
