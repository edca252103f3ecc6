# SPDX-License-Identifier: Apache-2.0
"""What each field may hold, said once.

A dataclass field is annotated with its type and a kind, such as
``Annotated[int, Integer(1, 65535)]``. The kind's :meth:`Kind.parse` is the only
place that knows what is allowed: the YAML reader, the checks of objects made in
Python and pydantic (so FastAPI) all call it, and its message is what a user
reads. pydantic is imported only when pydantic itself asks for a schema: naming
a dataclass costs nothing.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.model.primes import is_prime, prime_at_least, prime_at_most

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

Address = IPv4Address | IPv6Address

_LONGEST = 60  # of what a message quotes, in characters


def shown(raw: object) -> str:
    """``raw`` as an error message quotes it, never longer than a line."""
    if isinstance(raw, str | enum.Enum | Path | Address | IPv4Network | IPv6Network):
        raw = str(raw)
    words = {"True": "true", "False": "false", "None": "null"}
    text = repr(raw)
    text = words.get(text, text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class Kind:
    """A field's set of allowed values."""

    def parse(self, raw: object) -> Any:
        """Return the value that ``raw`` (plain data, or a value already) means.

        Raises ValueError that says what is wrong and what is allowed.
        """
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON schema of the plain data."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def parse(raw: object) -> Any:
            try:
                return self.parse(raw)
            except ValueError as error:
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
    return value if isinstance(value, bool | int | None) else str(value)


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number from ``least`` to ``most``."""

    least: int
    most: int

    def parse(self, raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise ValueError(f"{shown(raw)} is not a whole number; {self.allowed}")
        if not self.least <= raw <= self.most:
            raise ValueError(f"{raw} is out of range; {self.allowed}")
        return raw

    @property
    def allowed(self) -> str:
        return f"allowed: {self.least} to {self.most}"

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Prime(Integer):
    """A prime from ``least`` to ``most``, both of which are primes."""

    def parse(self, raw: object) -> int:
        number = super().parse(raw)
        if not is_prime(number):
            near = f"{prime_at_most(number)} and {prime_at_least(number)}"
            raise ValueError(f"{number} is not a prime; the nearest primes are {near}")
        return number

    @property
    def allowed(self) -> str:
        return f"allowed: a prime from {self.least} to {self.most}"


@dataclass(frozen=True)
class Flag(Kind):
    """true or false."""

    def parse(self, raw: object) -> bool:
        if not isinstance(raw, bool):
            raise ValueError(f"{shown(raw)} is neither true nor false; allowed: true, false")
        return raw

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Word(Kind):
    """One of a few words; the words of an enum become its members."""

    def __init__(self, *words: str, of: type[enum.StrEnum] | None = None) -> None:
        self._words = {word: word for word in words} if of is None else {str(m): m for m in of}

    def parse(self, raw: object) -> str:
        word = self._words.get(raw) if isinstance(raw, str) else None
        if word is None:
            raise ValueError(f"{shown(raw)} is not known; allowed: {', '.join(self._words)}")
        return word

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._words)}


def text(raw: object, what: str) -> str:
    """Return ``raw`` if it is text. YAML makes numbers and booleans of bare words."""
    if not isinstance(raw, str):
        hint = "; put it in quotes" if isinstance(raw, int | float) else ""
        raise ValueError(f"{shown(raw)} is not text{hint}; allowed: {what}")
    return raw


@dataclass(frozen=True)
class Name(Kind):
    """What people call a service. Safe in a URL path and in a metric's label."""

    most: int = 128
    pattern = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
    allowed = "letters, digits and . _ : - of which the first is a letter or digit"

    def parse(self, raw: object) -> str:
        name = text(raw, self.allowed)
        if len(name) > self.most:
            raise ValueError(f"{shown(name)} is too long; allowed: {self.most} characters")
        if not re.fullmatch(self.pattern, name):
            raise ValueError(f"{shown(name)} is not a name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self.pattern}$", "maxLength": self.most}


@dataclass(frozen=True)
class DeviceName(Kind):
    """A network device's name, by the kernel's ``dev_valid_name()``."""

    allowed = "1 to 15 bytes, no white space, no / and no :, not . or .."

    def parse(self, raw: object) -> str:
        name = text(raw, self.allowed)
        bad = name in ("", ".", "..") or len(name.encode()) > 15 or re.search(r"[\s/:\0]", name)
        if bad:
            raise ValueError(f"{shown(name)} can't be a device's name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 15}


@dataclass(frozen=True)
class AbsolutePath(Kind):
    """An absolute path. ``most``: longest in bytes, 0 = what the file system takes."""

    most: int = 0

    def parse(self, raw: object) -> Path:
        path = text(raw, "an absolute path") if not isinstance(raw, Path) else str(raw)
        if not path.startswith("/") or "\0" in path:
            raise ValueError(
                f"{shown(path)} is not an absolute path; allowed: one that starts with /"
            )
        if self.most and len(path.encode()) > self.most:
            raise ValueError(f"{shown(path)} is too long; allowed: {self.most} bytes")
        return Path(path)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^/"}


@dataclass(frozen=True)
class UnicastAddress(Kind):
    """The address of one host, reachable through the network."""

    allowed = "a unicast IPv4 or IPv6 address"

    def parse(self, raw: object) -> Address:
        if isinstance(raw, Address):
            address = raw
        else:
            try:
                address = ip_address(text(raw, self.allowed))
            except ValueError:
                raise ValueError(
                    f"{shown(raw)} is not an address; allowed: {self.allowed}"
                ) from None
        if reason := not_unicast(address):
            raise ValueError(f"{address} {reason}; allowed: {self.allowed}")
        return address

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "format": family} for family in ("ipv4", "ipv6")]}


def not_unicast(address: Address) -> str | None:
    """Why no packet from the network can be for ``address``, or None."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "has a zone, which means something on one host only"
        if address.ipv4_mapped is not None:
            return f"is IPv4 inside IPv6, write {address.ipv4_mapped}"
        if address.is_link_local:
            return "is link-local, which means something on one link only"
    if address.is_unspecified:
        return "is the unspecified address"
    if address.is_multicast:
        return "is a multicast address"
    if address.is_loopback:
        return "is a loopback address, which no packet on a wire has"
    if int(address) == 0xFFFFFFFF:
        return "is the broadcast address"
    return None


class SourceAddress(Kind):
    """``node``, an address, or a prefix whose host bits vary with the flow.

    The varied bits are at most the last 24 of an IPv4 address and the last 32
    of an IPv6 address: the flow's hash has 32.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        self._shortest = {4: 8, 6: 96}[version]

    @property
    def _allowed(self) -> str:
        return (
            f"allowed: node, an IPv{self._version} address, "
            f"or an IPv{self._version} prefix of /{self._shortest} or longer"
        )

    def parse(self, raw: object) -> str | Address | IPv4Network | IPv6Network:
        if raw == "node":
            return "node"
        if isinstance(raw, IPv4Network | IPv6Network) or (isinstance(raw, str) and "/" in raw):
            return self._prefix(raw)
        try:
            address = UnicastAddress().parse(raw)
        except ValueError as error:
            raise ValueError(f"{str(error).rpartition('; ')[0]}; {self._allowed}") from None
        self._check_version(raw, address.version)
        return address

    def _prefix(self, raw: str | IPv4Network | IPv6Network) -> Address | IPv4Network | IPv6Network:
        try:
            prefix = ip_network(raw, strict=False)
        except ValueError:
            raise ValueError(f"{shown(raw)} is not a prefix; {self._allowed}") from None
        self._check_version(raw, prefix.version)
        host = ip_address(str(raw).partition("/")[0])
        if host != prefix.network_address:
            raise ValueError(
                f"{shown(raw)} has host bits set; write {prefix}, or {host} to not vary it"
            )
        if prefix.prefixlen < self._shortest:
            raise ValueError(f"{prefix} is too wide; {self._allowed}")
        if reason := not_unicast(prefix.network_address):
            raise ValueError(f"{prefix} {reason}; {self._allowed}")
        return prefix if prefix.num_addresses > 1 else prefix.network_address

    def _check_version(self, raw: object, version: int) -> None:
        if version != self._version:
            raise ValueError(f"{shown(raw)} is IPv{version}; {self._allowed}")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["node"], "description": self._allowed}


@dataclass(frozen=True)
class Listen(Kind):
    """``ADDRESS:PORT`` to listen on, or None: don't."""

    allowed = "ADDRESS:PORT, an IPv6 address in brackets, port 1 to 65535"

    def parse(self, raw: object) -> str | None:
        if raw is None:
            return None
        split_listen(text(raw, self.allowed))
        return str(raw)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "null"}], "examples": ["127.0.0.1:9464"]}


def split_listen(listen: str) -> tuple[Address, int]:
    """``127.0.0.1:9464`` or ``[::1]:9464`` as address and port. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", listen)
    try:
        if match is None:
            raise ValueError
        address = IPv6Address(match[1]) if match[1] else IPv4Address(match[2])
        return address, Integer(1, 65535).parse(int(match[3]))
    except ValueError:
        raise ValueError(
            f"{shown(listen)} can't be listened on; allowed: {Listen.allowed}"
        ) from None
