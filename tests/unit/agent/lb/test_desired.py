# SPDX-License-Identifier: Apache-2.0
"""Two sources, one desired state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.samples import service

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.agent.lb.desired import Desired
from towpath.capabilities import API, FILE
from towpath.model.problems import MAX_PROBLEMS, MORE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.model import Service

WEB, MAIL = service("web"), service("mail", port=25)


def of(file: Iterable[Service] = (), api: Iterable[Service] = ()) -> Desired:
    """What the file and the API desire."""
    return Desired.of({FILE: file, API: api})


def test_both_sources_are_in_force() -> None:
    """Services of the file and of the API are all wished for, each with its owner."""
    desired = of([WEB], [MAIL])
    assert list(desired) == [(FILE, WEB), (API, MAIL)]
    assert desired.services() == (WEB, MAIL)
    assert desired.services(API) == (MAIL,)
    assert desired.get("mail") == (API, MAIL)


def test_a_name_in_both_sources_is_a_conflict() -> None:
    """The message names the service and both ways out."""
    with pytest.raises(ConflictError, match=r"service 'web' belongs to the configuration file"):
        of([WEB], [service("web", "203.0.113.99")])
    api = of([], [WEB])
    with pytest.raises(ConflictError, match=r"was also set through the API; remove it there"):
        api.replaced(FILE, [service("web", "203.0.113.99")])


def test_a_vip_in_both_sources_is_a_conflict() -> None:
    """The message names the VIP, both services and both owners."""
    with pytest.raises(
        ConflictError,
        match=r"vip: 203\.0\.113\.10:80/tcp of service 'other' \(api\) is already that of service"
        r" 'web' \(file\)",
    ):
        of([WEB], [service("other")])


def test_every_conflict_is_named() -> None:
    """Not only the first."""
    with pytest.raises(ConflictError) as caught:
        of([WEB, MAIL], [service("web", port=99), service("other", port=25)])
    assert [problem.field for problem in caught.value.problems] == ["name", "vip"]


def test_the_same_vip_with_another_port_is_none() -> None:
    """What must be unique is address, port and protocol together."""
    assert len(of([WEB], [MAIL]).services()) == 2


def test_services_exchange_their_vips_in_one_change() -> None:
    """What goes makes room for what comes."""
    desired = of([], [service("a", port=1), service("b", port=2)])
    swapped = desired.changed(API, put=[service("a", port=2), service("b", port=1)])
    assert {each.service.name: each.service.port for each in swapped} == {"a": 2, "b": 1}


def test_a_change_leaves_the_original_as_it_was() -> None:
    """States are values: a refused change has changed nothing."""
    desired = of([], [WEB])
    changed = desired.changed(API, put=[MAIL], remove=["web"])
    assert desired.services() == (WEB,)
    assert changed.services() == (MAIL,)


def test_a_vip_is_free_once_its_service_is_gone() -> None:
    """Nothing of a removed service lingers."""
    desired = of([], [WEB]).changed(API, remove=["web"])
    assert desired.changed(FILE, put=[service("other")]).services() == (service("other"),)


def test_replacing_the_file_keeps_the_apis() -> None:
    """And the file's services that are not in the new one go."""
    desired = of([WEB], [MAIL]).replaced(FILE, [service("new", port=8080)])
    assert [each.service.name for each in desired] == ["mail", "new"]


def test_the_api_changes_only_what_is_its_own() -> None:
    """A service of the file is refused, one that isn't there is not found."""
    desired = of([WEB], [MAIL])
    assert desired.owned_by_api("mail") == MAIL
    with pytest.raises(ConflictError, match="belongs to the configuration file; change it there"):
        desired.owned_by_api("web")
    with pytest.raises(NotFoundError, match=r"no service 'x'; there are: mail, web"):
        desired.owned_by_api("x")


def test_an_unknown_name_is_answered_with_some_that_are_known() -> None:
    """Some: there may be thousands."""
    many = of([service(f"s{i:02}", port=1 + i) for i in range(30)])
    with pytest.raises(NotFoundError, match=r"there are: s00, .*, s09, \.\.\.$"):
        many.get("x")
    with pytest.raises(NotFoundError, match="there are: none"):
        of().get("x")


def test_only_so_many_contradictions_are_told() -> None:
    """Two sources that have the same thousands of services don't fill a log with them."""
    services = [service(f"s{port}", port=port) for port in range(1, 301)]
    with pytest.raises(ConflictError) as refusal:
        of(services, services)
    assert len(refusal.value.problems) == MAX_PROBLEMS + 1
    assert refusal.value.problems[-1] == MORE
