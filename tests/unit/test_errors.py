# SPDX-License-Identifier: Apache-2.0
"""Errors have one root, and what a caller may write for a service is what a service has."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import get_type_hints

import towpath
from towpath.model import Backend, Service
from towpath.model.fields import BackendFields, FlowFields, ServiceFields
from towpath.model.flow_question import FlowQuestion


def test_every_exception_of_the_package_is_below_the_root() -> None:
    """So that one clause catches all of them."""
    found = set()
    for module in pkgutil.walk_packages(towpath.__path__, "towpath."):
        if module.name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(module.name)).values():
            if (
                isinstance(each, type)
                and issubclass(each, Exception)
                and each.__module__.startswith("towpath")
            ):
                found.add(each)
    assert len(found) > 20
    assert [each for each in found if not issubclass(each, towpath.Error)] == []


def test_not_found_is_said_as_a_sentence() -> None:
    """A KeyError would show it in quotes."""
    error = towpath.NotFoundError("there is no service 'dns'")
    assert isinstance(error, KeyError)
    assert str(error) == "there is no service 'dns'"


def test_fields_are_those_of_the_dataclasses() -> None:
    """None is missing, and none too many."""
    for hints, cls, besides in (
        (ServiceFields, Service, {"name"}),
        (BackendFields, Backend, set()),
        (FlowFields, FlowQuestion, set()),
    ):
        assert set(get_type_hints(hints)) | besides == {each.name for each in fields(cls)}
    assert ServiceFields.__required_keys__ == {"vip", "port"}
    assert BackendFields.__required_keys__ == {"address"}
