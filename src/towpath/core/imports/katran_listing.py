# SPDX-License-Identifier: Apache-2.0
"""What ``katran_goclient -l`` prints, and ``-list_qm``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from towpath.core.imports.imported import Place
from towpath.core.imports.katran_table import (
    MAX_PORT,
    MAX_WEIGHT,
    REAL_FLAGS,
    VIP_FLAGS,
    Key,
    Named,
    Real,
    Table,
    Vip,
    WrongLineError,
    address_of,
    flags_of,
    id_of,
    number_of,
)

if TYPE_CHECKING:
    from towpath.core.imports.imported import Collected

_VIP = re.compile(r"VIP:\s*(\S+)\s+Port:\s*(\S+)\s+Protocol:\s*(tcp|udp)")
_FLAGS = re.compile(r"Vip's flags:(.*)")
_REAL = re.compile(r"->\s*(\S+)\s+weight:?\s*(\S+?)(?:\s+flags:(.*))?")
_ID = re.compile(r"real:\s*(\S+)\s*= connection id:\s*(\S+)")
# Of Go's logger, and of main().
_OTHER = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d .*|exiting|printing address to quic.*"
    r"|[$#] .*katran_goclient.*"
)
_ALLOWED = "allowed: what katran_goclient -l and -list_qm print"


def read_listing(text: str, file: str, into: Collected) -> Table:
    """Return the VIPs and ids of a listing; what is wrong is refused."""
    found = Table()
    last: list[Vip] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line, place = raw.strip(), Place(file, number)
        if not line or _OTHER.fullmatch(line):
            continue
        try:
            _read(line, place, found, last)
        except WrongLineError as error:
            into.refuse(place, str(error))
    return found


def _read(line: str, place: Place, table: Table, last: list[Vip]) -> None:
    found = table.vips
    if match := _ID.fullmatch(line):
        table.ids[id_of(match[2])] = Named(address_of(match[1], "real"), place)
        return
    if match := _VIP.fullmatch(line):
        address, port = address_of(match[1], "VIP"), number_of(match[2], "port", MAX_PORT)
        vip = Vip(Key(address, port, match[3]), place)
        if vip.key in found:
            raise WrongLineError(f"{vip} is there already, in line {found[vip.key].place.line}")
        found[vip.key] = vip
        last[:] = [vip]
        return
    flags, real = _FLAGS.fullmatch(line), _REAL.fullmatch(line)
    if not last or not (flags or real):
        raise WrongLineError(f"not a line of the listing; {_ALLOWED}")
    if flags:
        last[0].flags |= flags_of(flags[1].split(), VIP_FLAGS, place)
    elif real:
        made = Real(address_of(real[1], "real"), number_of(real[2], "weight", MAX_WEIGHT))
        made.flags |= flags_of((real[3] or "").split(), REAL_FLAGS, place)
        last[0].reals[made.address] = made
