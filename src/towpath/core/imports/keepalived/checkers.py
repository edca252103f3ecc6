# SPDX-License-Identifier: Apache-2.0
"""The checkers that a real server may have: TCP_CHECK, HTTP_GET and so on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towpath.core.imports.imported import Remark
from towpath.core.imports.keepalived.datagrams import datagram, question
from towpath.core.imports.keepalived.settings import Settings
from towpath.core.imports.keepalived.values import MAX_PORT, WrongValueError, whole, word
from towpath.model.health import CheckType
from towpath.model.kinds import FieldError, StatusCodes, UrlPath, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.core.imports.imported import Place
    from towpath.core.imports.keepalived.blocks import Directive

DELAY_LOOP, CONNECT_TIMEOUT = 60.0, 5.0
STATUS = "200-299"

_TIMING = (
    *("alpha", "delay_before_retry", "delay_loop", "log_all_failures"),
    *("retry", "warmup"),
)
_CONNECTION = (
    *_TIMING,
    *("bind_if", "bind_port", "bindto", "connect_ip", "connect_port", "connect_timeout", "fwmark"),
)
_HTTP = (
    *_CONNECTION,
    *("enable_sni", "fast_recovery", "http_protocol", "nb_get_retry", "sni_name", "tls_compliant"),
    "virtualhost",
)
_URL = (
    *("digest", "path", "regex", "regex_max_offset", "regex_min_offset", "regex_no_match"),
    *("regex_options", "regex_stack", "status_code", "tls_compliant", "virtualhost"),
)
_KNOWN: dict[str, Sequence[str]] = {
    "TCP_CHECK": _CONNECTION,
    "HTTP_GET": _HTTP,
    "SSL_GET": _HTTP,
    "MISC_CHECK": (*_TIMING, "misc_dynamic", "misc_path", "misc_timeout", "user"),
    "SMTP_CHECK": (*_CONNECTION, "helo_name"),
    "DNS_CHECK": (*_CONNECTION, "name", "type"),
    "UDP_CHECK": (
        *_CONNECTION,
        *("max_reply_length", "min_reply_length", "payload", "require_reply"),
    ),
    "PING_CHECK": _CONNECTION,
    "BFD_CHECK": ("alpha", "name"),
    "FILE_CHECK": ("dynamic", "track_file", "weight"),
}
CHECKERS = tuple(_KNOWN)
_BLOCKS = {"HTTP_GET": ("url",), "SSL_GET": ("url",), "SMTP_CHECK": ("host",)}
_TYPES = {
    "TCP_CHECK": CheckType.TCP,
    "HTTP_GET": CheckType.HTTP,
    "SSL_GET": CheckType.HTTPS,
    "MISC_CHECK": CheckType.COMMAND,
    "DNS_CHECK": CheckType.DNS,
    "UDP_CHECK": CheckType.UDP,
}
_RETRIES = {"MISC_CHECK": 0, "DNS_CHECK": 3}
_COMMAND = "no check is of this kind; a command that asks so can be one (health.type: command)"
_UNUSABLE = {
    "SMTP_CHECK": f"{_COMMAND}, and health: tcp connects",
    "PING_CHECK": _COMMAND,
    "BFD_CHECK": "no check is of this kind; a short interval of health: tcp finds as much",
    "FILE_CHECK": _COMMAND,
}
_CONTENT = "of an answer the status decides, and what it holds isn't looked at"
_SOURCE = "checks take the way of clients' packets, from an address of the load balancer's"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a check takes from its real and virtual server."""

    delay_loop: float = DELAY_LOOP
    connect_timeout: float = CONNECT_TIMEOUT
    retry: int | None = None
    virtualhost: str = ""

    @classmethod
    def of(cls, real: Settings, virtual: Settings) -> Defaults:
        """Read them; a real server's go before those of its virtual server."""
        loop = real.seconds("delay_loop", virtual.seconds("delay_loop", DELAY_LOOP))
        timeout = real.seconds("connect_timeout", virtual.seconds("connect_timeout"))
        return cls(
            delay_loop=DELAY_LOOP if loop is None else loop,
            connect_timeout=CONNECT_TIMEOUT if timeout is None else timeout,
            retry=real.whole("retry", virtual.whole("retry")),
            virtualhost=real.get("virtualhost", word, virtual.get("virtualhost", word, "")),
        )


@dataclass(frozen=True, slots=True)
class Check:
    """A checker, and what of it can't be carried over."""

    kind: str
    place: Place
    type: CheckType = CheckType.TCP
    interval: float = DELAY_LOOP
    timeout: float = CONNECT_TIMEOUT
    retry: int = 1
    port: int = 0
    """0: the real server's."""
    path: str = "/"
    host: str | None = None
    status: str = "200-399"
    command: tuple[str, ...] = ()
    send: str = ""
    expect: str = ""
    query: str = "."
    remarks: tuple[Remark, ...] = ()
    unusable: str = ""
    """Why it can't be carried over; empty: it can."""


def read_checks(real: Settings, defaults: Defaults) -> tuple[Check, ...]:
    """Return the checks of a real server; what is wrong is refused."""
    return tuple(_check(each, defaults, real) for each in real.all(*CHECKERS))


def _check(directive: Directive, defaults: Defaults, real: Settings) -> Check:
    kind = directive.name
    settings = Settings(directive, _KNOWN[kind], real.into, _BLOCKS.get(kind, ()))
    if kind in _UNUSABLE:
        return Check(kind, directive.place, unusable=_UNUSABLE[kind])
    try:
        more = _OWN[kind](settings, defaults)
    except WrongValueError as error:
        real.into.refuse(directive.place, str(error))
        more = {}
    if settings.has("connect_ip"):
        ip = settings.get("connect_ip", word, "")
        more["unusable"] = f"asks {ip}, and a backend is checked itself"
    remarks = [*more.pop("remarks", ()), *_differences(settings)]
    loop = settings.seconds("delay_loop", defaults.delay_loop)
    retry = settings.whole("retry", defaults.retry)
    timeout = settings.seconds("connect_timeout", defaults.connect_timeout)
    values: dict[str, Any] = {
        "interval": defaults.delay_loop if loop is None else loop,
        "timeout": defaults.connect_timeout if timeout is None else timeout,
        "retry": _RETRIES.get(kind, 1) if retry is None else retry,
        "port": settings.get("connect_port", lambda each: whole(each, 1, MAX_PORT), 0),
    } | more
    return Check(kind, directive.place, type=_TYPES[kind], remarks=tuple(remarks), **values)


def _differences(settings: Settings) -> list[Remark]:
    """Of what all checkers may have."""
    whys = dict.fromkeys(("bindto", "bind_port", "bind_if", "fwmark"), _SOURCE)
    whys["alpha"] = "a backend gets flows until its first check has failed often enough"
    return [
        Remark(f"{settings.directive.name} {directive}", why, directive.place)
        for name, why in whys.items()
        if (directive := settings.one(name))
    ]


def _tcp(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    del settings, defaults
    return {}


# ---- HTTP ----------------------------------------------------------------------------------------


def _http(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    urls = [Settings(each, _URL, settings.into) for each in settings.all("url")]
    if not urls:
        raise WrongValueError(f"{settings.directive.name} has no url; allowed: url {{ path /... }}")
    remarks = [
        Remark(f"url {each.get('path', word, '')}", "one url is checked: the first", place)
        for each in urls[1:]
        if (place := each.directive.place)
    ]
    url = urls[0]
    remarks += [
        Remark(str(directive), _CONTENT, directive.place)
        for name in ("digest", "regex", "regex_no_match")
        if (directive := url.one(name))
    ]
    host = url.get("virtualhost", word, settings.get("virtualhost", word, defaults.virtualhost))
    sni = settings.get("sni_name", _maybe_word, "")
    if sni and sni != host:
        why = f"the name in the handshake is that of the request, {host or 'the VIP'}"
        remarks.append(Remark(f"sni_name {sni}", why, settings.directive.place))
    found = {"host": host or None, "status": url.get("status_code", _status, STATUS)}
    path = url.get("path", word, "/")
    try:
        return found | {"path": UrlPath().parse(path), "remarks": remarks}
    except FieldError as error:
        return found | {"unusable": f"path: {error}", "remarks": remarks}


def _maybe_word(directive: Directive) -> str:
    return directive.values[0] if directive.values else ""


def _status(directive: Directive) -> str:
    try:
        return StatusCodes().parse(directive.values)
    except FieldError as error:
        raise WrongValueError(f"{directive.name}: {error}") from error


# ---- Commands ------------------------------------------------------------------------------------


def _misc(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    path = settings.get("misc_path", _line, "")
    try:
        words = shlex.split(path)
    except ValueError:
        raise WrongValueError(f"misc_path {shown(path)} has quotes that don't fit") from None
    if not words:
        raise WrongValueError("MISC_CHECK has no misc_path; allowed: one")
    loop = settings.seconds("delay_loop", defaults.delay_loop)
    why = (
        "is run as the agent is, as root as a rule; only the configuration file may have commands, "
        "`towpath service apply` takes none"
    )
    remarks = [Remark("MISC_CHECK", why, settings.directive.place)]
    found: dict[str, Any] = {
        "command": tuple(words),
        "timeout": settings.seconds("misc_timeout", loop) or loop,
        "remarks": remarks,
    }
    if not words[0].startswith("/"):
        found["unusable"] = f"{words[0]} is no absolute path"
    if settings.has("misc_dynamic"):
        found["unusable"] = "misc_dynamic: weights don't follow an exit status, and but 0 all fail"
    return found


def _line(directive: Directive) -> str:
    """A command in quotes, or the words of one."""
    return directive.values[0] if len(directive.values) == 1 else shlex.join(directive.values)


_OWN = {
    "TCP_CHECK": _tcp,
    "HTTP_GET": _http,
    "SSL_GET": _http,
    "MISC_CHECK": _misc,
    "DNS_CHECK": question,
    "UDP_CHECK": datagram,
}
