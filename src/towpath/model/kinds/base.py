# SPDX-License-Identifier: Apache-2.0
"""A kind of field, and how pydantic learns of it."""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.errors import Error

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

_MAX_QUOTED = 60  # of what a message quotes, in characters

_TEXT = (str, enum.Enum, Path, IPv4Address, IPv6Address, IPv4Network, IPv6Network)


class FieldError(Error, ValueError):
    """A value that its field can't hold: what is wrong, and what is allowed."""


class Kind:
    """A field's set of allowed values."""

    def parse(self, raw: object) -> Any:
        """Return the value that ``raw`` (plain data, or a value already) means.

        Raises FieldError.
        """
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the plain data."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema  # noqa: PLC0415 - see package

        def parse(raw: object) -> Any:
            try:
                return self.parse(raw)
            except FieldError as error:
                # As a parameter: a brace in the message is then just a brace.
                raise PydanticCustomError("value", "{what}", {"what": str(error)}) from None

        return core_schema.no_info_plain_validator_function(
            parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                plain, when_used="json-unless-none"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.schema()


def plain(value: object) -> object:
    """Return ``value`` as JSON has it: the inverse of :meth:`Kind.parse`."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def shown(raw: object) -> str:
    """Return ``raw`` as an error message quotes it, never longer than a line."""
    words = {"True": "true", "False": "false", "None": "null"}
    try:
        quoted = repr(str(raw) if isinstance(raw, _TEXT) else raw)
    except ValueError:  # more digits than Python converts
        quoted = "a number of thousands of digits"
    quoted = words.get(quoted, quoted)
    return quoted if len(quoted) <= _MAX_QUOTED else f"{quoted[: _MAX_QUOTED - 3]}..."


def text(raw: object, allowed: str) -> str:
    """Return ``raw`` if it is text. YAML makes numbers and booleans of bare words."""
    if not isinstance(raw, str):
        hint = "; put it in quotes" if isinstance(raw, int | float) else ""
        raise FieldError(f"{shown(raw)} is not text{hint}; allowed: {allowed}")
    return raw
