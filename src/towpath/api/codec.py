# SPDX-License-Identifier: Apache-2.0
"""Dataclasses to JSON and back: both ends of the API's socket use it."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from towpath.model.kinds import Kind, Ports


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


def build(hint: Any, data: Any) -> Any:
    """The value of type hint that plain() made data of.

    Fields that a newer agent added are ignored, those that an older one lacks
    have their defaults. Raises TypeError, ValueError or KeyError when data is of
    another shape.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, kind = arguments[:2]
        return kind.parse(data) if isinstance(kind, Kind) else build(inner, data)
    if origin in {Union, types.UnionType}:
        return _build_union(arguments, data)
    if origin is tuple:
        return tuple(build(arguments[0], item) for item in data)
    if origin is dict:
        return {key: build(arguments[1], item) for key, item in data.items()}
    return _build_one(hint, data)


def _build_one(hint: Any, data: Any) -> Any:
    """A value that is no container."""
    if hints := _hints(hint):
        return hint(**{key: build(hints[key], data[key]) for key in hints if key in data})
    if isinstance(hint, type) and issubclass(hint, enum.Enum | Path):
        return hint(data)
    return data


def _build_union(options: tuple[Any, ...], data: Any) -> Any:
    """An optional value, or an address or prefix of either family."""
    if data is None:
        return None
    if IPv4Address in options and IPv6Address in options:
        return ip_address(data)
    if IPv4Network in options and IPv6Network in options:
        return ip_network(data)
    (only,) = (option for option in options if option is not type(None))
    return build(only, data)


@cache
def _names(cls: type) -> tuple[str, ...]:
    """A dataclass's fields; nothing for other classes."""
    return tuple(field.name for field in fields(cls)) if is_dataclass(cls) else ()


@cache
def _defaults(cls: type) -> dict[str, Any]:
    """Those of a dataclass's fields that have one."""
    return {field.name: field.default for field in fields(cls) if field.default is not MISSING}


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields; nothing for other classes."""
    hints = get_type_hints(cls, include_extras=True) if _names(cls) else {}
    return {name: hints[name] for name in _names(cls)}
