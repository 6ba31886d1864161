"""What a file of settings says, and what of a URL may be told."""

from __future__ import annotations

import pytest
from stucktrace.collectors import settings_files
from stucktrace.collectors.celery_public import public
from stucktrace.collectors.settings_files import COMPUTED, Assigned, Import


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://guest:secret@broker:5672//", "amqp://broker:5672"),
        ("amqp://broker", "amqp://broker"),
        ("amqp://", "amqp://"),
        ("amqp://u:secret@[::1]:5672/v", "amqp://[::1]:5672"),
        ("amqps://u:se/cret@broker/v", "amqps://(hidden)"),
        ("amqp://u:se?cret@broker/v", "amqp://(hidden)"),
        ("amqp://u:s@cret@broker/v", "amqp://broker"),
        ("amqp://u:secret@one//;amqp://u:secret@two//", "amqp://one amqp://two"),
        ("amqp://u:12;34@broker", "(hidden)"),
        (("redis://:secret@one", "redis://:secret@two"), "redis://one redis://two"),
        ("sqs://KEY:secret@", "sqs://"),
        ("redis+socket:///run/redis.sock", "redis+socket://"),
        ("memory", "memory"),
        ("guest:secret@broker", "(hidden)"),
    ],
)
def test_of_a_url_scheme_and_host(url, told):
    assert public("broker_url", url) == (told, True)


def test_of_a_backend_its_kind():
    assert public("result_backend", "db+postgresql://u:secret@h/x") == ("db+postgresql", True)
    assert public("result_backend", "proj.backends:Mine") == ("proj.backends", True)
    assert public("result_backend", "se cret") == ("(hidden)", True)
    assert public("broker_host", "u:secret@h") == ("(hidden)", True)
    assert public("broker_transport", "amqp://u:secret@h") == ("(hidden)", True), "a URL where none belongs"


def parse(text: str) -> settings_files.Parsed:
    return settings_files.parse(text.encode(), ("A", "B"))


def test_plain_assignments_count():
    found = parse("A = {'x': 1, 'y': f()}\nB: int = -3\nC = 1\nA = dict(x=1)\n")
    assert found.assigned == (
        Assigned("A", 1, {"x": 1, "y": COMPUTED}),
        Assigned("B", 2, -3),
        Assigned("A", 4, {"x": 1}),
    )
    assert settings_files.final(found, found.assigned[0]) == Assigned("A", 4, {"x": 1})


def test_what_stands_in_a_dict_or_is_set_on_the_application():
    found = parse("CELERY = {'A': 1, 'other': 2, 'B': {'x': 3}}\napp.conf.A = 4\napp.conf.update({'B': 5}, A=6)\n")
    assert found.assigned == (
        Assigned("A", 1, 1, inside="CELERY"),
        Assigned("B", 1, {"x": 3}, inside="CELERY"),
        Assigned("A", 2, 4, owner="app"),
        Assigned("A", 3, 6, owner="app"),
        Assigned("B", 3, 5, owner="app"),
    )
    assert parse("CELERY = {'A': 1}\nCELERY['A'] = 2\n").assigned == ()


@pytest.mark.parametrize(
    "text",
    [
        "A = 1\nA += 1",
        "A = {}\nif x:\n    A['x'] = 1",
        "A = {}\nif A.pop('x'):\n    pass",
        "A = {}\nA['x'] = 1",
        "A = {}\nA.update(x=1)",
        "A = 1\ndel A",
        "A = (",
        "",
    ],
)
def test_what_is_changed_otherwise_is_left_out(text):
    assert parse(text).assigned == ()


def test_what_is_conditional_only_says_that_a_name_may_have_changed():
    found = parse("A = {'x': 1}\nif y:\n    A = {}\nelse:\n    try:\n        B = 2\n    finally:\n        pass\n")
    assert [(each.name, each.line, each.conditional) for each in found.assigned] == [
        ("A", 1, False), ("A", 3, True), ("B", 6, True)
    ]  # fmt: skip
    assert settings_files.final(found, found.assigned[0]).line == 3
    assert [each.line for _, each in settings_files.by_name(found.assigned, {"A": "a", "B": "b"})] == [1]


@pytest.mark.parametrize("text", ["A = {**B}", "A = {x: 1}", "A = dict(**B)", "A = f()", "A = dict(B)"])
def test_what_is_computed(text):
    assert [each.value for each in parse(text).assigned] == [COMPUTED]


def test_what_it_imports_and_configures():
    found = parse(
        "try:\n    from .local import *\nexcept ImportError:\n    pass\nfrom base import A\napp.config_from_object('conf')"
    )
    assert found.imports == (Import("base", 0, 5, ("A",)), Import("local", 1, 2, ("*",)))
    assert found.configures == ("conf",)


@pytest.mark.parametrize(
    ("importer", "package", "named", "level", "full"),
    [
        ("proj.settings.production", False, "base", 1, "proj.settings.base"),
        ("proj.settings", True, "base", 1, "proj.settings.base"),
        ("proj.settings.a", False, "base", 2, "proj.base"),
        ("proj.settings", True, "", 1, "proj.settings"),
        ("anything", False, "base", 0, "base"),
    ],
)
def test_relative_names(importer, package, named, level, full):
    assert settings_files.module_of(importer, package, named, level) == full
