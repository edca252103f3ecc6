# SPDX-License-Identifier: Apache-2.0
"""Dataclasses to JSON and back: both ends of the API's socket use it."""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args, get_origin
from typing import get_type_hints as hints_of

import msgspec

from towpath.model.kinds import Kind, Ports, address_of
from towpath.model.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    Builder: TypeAlias = Callable[[Any], Any]


def plain(value: Any, *, defaults: bool = True) -> Any:
    """A dataclass, and whatever it holds, as JSON has it.

    Without ``defaults`` fields that have their default are left out: who is older, and refuses
    fields that it doesn't know, takes what doesn't need them.
    """
    if value is None or isinstance(value, bool | int | float) or type(value) is str:
        return value
    if isinstance(value, list | tuple):
        return [plain(item, defaults=defaults) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item, defaults=defaults) for key, item in value.items()}
    if (names := _names(value.__class__)) and not isinstance(value, Ports):
        held = {name: getattr(value, name) for name in names}
        if not defaults:
            usual = _defaults(value.__class__)
            held = {name: each for name, each in held.items() if each != usual.get(name, MISSING)}
        return {name: plain(each, defaults=defaults) for name, each in held.items()}
    return str(value)


def text(value: Any) -> str:
    """JSON of what plain() makes of a value; of services of one port, in a tenth of its time."""
    if isinstance(value, Service) and not isinstance(value.port, Ports) and value.health is None:
        return msgspec.json.encode(value, enc_hook=str).decode()
    return json.dumps(plain(value))


def build(hint: Any, data: Any) -> Any:
    """The value of type hint that plain() made data of.

    Fields that a newer agent added are ignored, those that an older one lacks
    have their defaults. Raises TypeError, ValueError or KeyError when data is of
    another shape.
    """
    return _builder(hint)(data)


@cache
def _builder(hint: Any) -> Builder:
    """What builds values of a type: a hint is read once, not for each of thousands of values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, kind = arguments[:2]
        return kind.parse if isinstance(kind, Kind) else _builder(inner)
    if origin in {Union, types.UnionType}:
        return _union_builder(arguments)
    if origin is tuple:
        item = _builder(arguments[0])
        return lambda data: tuple([item(each) for each in data])
    if origin is dict:
        value = _builder(arguments[1])
        return lambda data: {key: value(each) for key, each in data.items()}
    return _builder_of_one(hint)


def _builder_of_one(hint: Any) -> Builder:
    """Of a value that is no container."""
    if names := _names(hint) if isinstance(hint, type) else ():
        hints = hints_of(hint, include_extras=True)
        known: dict[str, Builder] = {}

        def build_fields(data: Any) -> Any:
            if not known:  # not before: a class may have fields of its own type
                known.update({name: _builder(hints[name]) for name in names})
            return hint(**{name: make(data[name]) for name, make in known.items() if name in data})

        return build_fields
    if isinstance(hint, type) and issubclass(hint, enum.Enum | Path):
        return hint
    return lambda data: data


def _union_builder(options: tuple[Any, ...]) -> Builder:
    """Of an optional value, or an address or prefix of either family."""
    only: Builder
    if IPv4Address in options and IPv6Address in options:
        only = address_of
    elif IPv4Network in options and IPv6Network in options:
        only = ip_network
    else:
        (one,) = (option for option in options if option is not type(None))
        only = _builder(one)
    return lambda data: None if data is None else only(data)


@cache
def _names(cls: type) -> tuple[str, ...]:
    """A dataclass's fields; nothing for other classes."""
    return tuple(field.name for field in fields(cls)) if is_dataclass(cls) else ()


@cache
def _defaults(cls: type) -> dict[str, Any]:
    """Those of a dataclass's fields that have one."""
    return {field.name: field.default for field in fields(cls) if field.default is not MISSING}
