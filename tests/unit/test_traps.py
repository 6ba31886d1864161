"""The audit's rules on literal facts: each trap alone, beside what looks like it and is fine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from stucktrace.collectors import c_clients
from stucktrace.diagnosis import traps, traps_connections
from stucktrace.facts import AmqpChannel, AmqpFact, Keepalive, ProcessFact, SettingFact, WorkerFact
from stucktrace.facts.audited import Audited, CClient
from stucktrace.facts.settings import DEFAULT, ERROR, OK, WARN, ConfigFile, alike

from tests.unit.snapshots import listen, tcp

GOOD = {"keepalive": Keepalive(True, 10.0, 5.0, 2, 0), "user_timeout_s": 15.0}
SLOW = Keepalive(True, 7200.0, 75.0, 9, 0)
SETTINGS = {
    "worker_class": "sync", "workers": 2, "threads": 1, "timeout": 30, "preload_app": False, "max_requests": 0,
    "max_requests_jitter": 0, "worker_tmp_dir": None,
}  # fmt: skip


def member(kind="gunicorn-worker", pid=100, sockets=(), worker_class="sync", more=None, **settings):
    facts = tuple(
        SettingFact("gunicorn", name, value, "command line" if name in settings else DEFAULT, in_force=True)
        for name, value in (SETTINGS | {"worker_class": worker_class} | settings).items()
    )
    worker = WorkerFact(kind, worker_class=worker_class)
    process = ProcessFact(pid, pid, 1, 5, "python", (), "S", age_s=600.0, is_python=True, worker=worker)
    return Audited(process, tuple(sockets), settings=facts if "gunicorn" in kind else (), **(more or {}))


def problems(*family):
    found = {check.code: check for check in traps.check(family) if check.status != OK}
    for each in family:
        found |= {c.check.code: c.check for c in traps_connections.connections(each) if c.check.status != OK}
    assert all(check.fix for check in found.values())
    return {code: check.status for code, check in found.items()}


def about(connection, **more):
    return problems(member(sockets=[connection], **more))


def test_nothing_to_say():
    assert problems(member(sockets=[tcp(7, **GOOD), listen()])) == {}
    assert problems(replace(member(), settings=())) == {}


@pytest.mark.parametrize(
    ("connection", "more", "code"),
    [
        (tcp(7), {}, "no-timeout"),
        (tcp(7, user_timeout_s=15.0), {}, "no-timeout"),
        (tcp(7, keepalive=SLOW, user_timeout_s=0.0), {}, "detection-too-slow"),
        (tcp(7, **GOOD | {"user_timeout_s": 0.0}), {}, "detection-too-slow"),
        (tcp(7, **GOOD), {"timeout": 14}, "detection-too-slow"),
        (tcp(7), {"more": {"own_timeouts": {7: 60.0}}}, "detection-too-slow"),
        (tcp(7), {"more": {"own_timeouts": {7: None}}}, "no-timeout"),
        (tcp(7), {"more": {"python_fds": frozenset({8})}}, "no-timeout"),
        (tcp(7, keepalive=SLOW), {"kind": "celery-main"}, "detection-too-slow"),
        (tcp(7), {"more": {"amqp": (AmqpFact("10.0.0.1:40007", "", "memory", heartbeat_s=0.0),)}}, "no-heartbeat"),
        (tcp(7, remote="127.0.0.1:6379"), {"more": {"own_timeouts": {7: None}}}, "no-timeout"),
        (tcp(7, remote="127.0.0.1:6379"), {"more": {"own_timeouts": {7: 60.0}}}, "detection-too-slow"),
        (
            tcp(7, remote="10.0.0.1:5672"),
            {"more": {"amqp": (AmqpFact("10.0.0.1:40007", "", "memory", heartbeat_s=0.0),)}},
            "no-heartbeat",
        ),
    ],
)
def test_a_connection_that_would_hang(connection, more, code):
    assert about(connection, **more) == {code: WARN}


@pytest.mark.parametrize(
    ("connection", "more"),
    [
        (tcp(7), {"more": {"own_timeouts": {7: 5.0}}}),
        (tcp(7), {"more": {"python_fds": frozenset({7})}}),
        (tcp(7, keepalive=SLOW), {"more": {"python_fds": frozenset({7})}}),
        (tcp(7, keepalive=None), {}),
        (tcp(7, remote="127.0.0.1:6379"), {}),
        (tcp(7, remote="127.0.0.1:6379"), {"more": {"own_timeouts": {7: 5.0}}}),
        (tcp(7, remote="127.0.0.1:6379"), {"more": {"own_timeouts": {7: None}, "polled": frozenset({tcp(7).inode})}}),
        (tcp(7, keepalive=SLOW, remote="127.0.0.1:6379"), {"more": {"own_timeouts": {7: None}}}),
        (tcp(7, remote="[::1]:6379"), {}),
        (tcp(7, remote="10.0.0.1:6379"), {}),
        (tcp(7, direction="in"), {}),
        (tcp(7, state="CLOSE_WAIT"), {}),
        (tcp(7, **GOOD | {"user_timeout_s": 0.0}), {"kind": "celery-main"}),
        (tcp(7), {"kind": "celery-main", "more": {"amqp": (AmqpFact("10.0.0.1:40007", "", "memory", heartbeat_s=60.0),)}}),
        (tcp(7, **GOOD), {"timeout": 0, "worker_class": "uvicorn", "kind": "python"}),
    ],
)  # fmt: skip
def test_a_connection_that_would_not(connection, more):
    assert about(connection, **more) == {}


def test_the_fix_of_a_celery_connection_is_the_line_to_write():
    amqp = AmqpFact("10.0.0.1:40007", "", "memory", client="py-amqp", heartbeat_s=0.0)
    celery = (
        SettingFact("celery", "app_namespace", "CELERY_", "x"),
        SettingFact("celery", "broker_transport_options", "1 option", "/srv/settings.py:6"),
    )
    each = member(sockets=[tcp(7, keepalive=SLOW, user_timeout_s=1.0)], more={"amqp": (amqp,)})
    process = replace(each.process, packages={"kombu": "5.7.0"})
    (found,) = traps_connections.connections(replace(each, process=process, settings=(*each.settings, *celery)))
    assert found.check.fix == (
        'CELERY_BROKER_TRANSPORT_OPTIONS.update({"socket_settings": {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, '
        "socket.TCP_KEEPCNT: 3}}), behind /srv/settings.py:6"
    )


def test_the_timeout_of_a_result_backend_is_a_setting_of_its_own():
    celery = (
        SettingFact("celery", "broker_url", "redis://10.0.0.2", "x"),
        SettingFact("celery", "result_backend", "redis", "x"),
        SettingFact("celery", "redis_socket_timeout", 120.0, DEFAULT),
    )
    each = member(sockets=[tcp(7, remote="10.0.0.2:6379")], more={"own_timeouts": {7: 120.0}})
    (found,) = traps_connections.connections(replace(each, settings=(*each.settings, *celery)))
    assert (found.check.code, found.check.fix) == ("detection-too-slow", "redis_socket_timeout = 15")


def test_what_is_known_of_a_connection():
    amqp = AmqpFact("10.0.0.1:40007", "", "memory", heartbeat_s=30.0, channels=(AmqpChannel(1, confirms=True),))
    (found,) = traps_connections.connections(member(sockets=[tcp(7, **GOOD)], more={"amqp": (amqp,)}))
    assert (found.idle_window_s, found.in_flight_window_s, found.budget_s) == (15.0, 15.0, 30.0)
    assert (found.heartbeat_s, found.confirms) == (30.0, True)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"timeout": 0}, "timeout-off"),
        ({"max_requests": 20, "max_requests_jitter": 5}, "max-requests-low"),
        ({"max_requests": 1000}, "max-requests-without-jitter"),
        ({"worker_tmp_dir": "/var/tmp", "more": {"heartbeat_filesystem": "ext4"}}, "heartbeat-on-disk"),
        ({"more": {"heartbeat_filesystem": "nfs4"}}, "heartbeat-on-disk"),
    ],
)
def test_gunicorns_settings(settings, code):
    assert problems(member(**settings)) == {code: WARN}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_requests": 1000, "max_requests_jitter": 100},
        {"max_requests": 1000, "workers": 1},
        {"worker_class": "gthread", "threads": 8},
        {"more": {"heartbeat_filesystem": "ext4"}},
        {"worker_tmp_dir": "/dev/shm", "more": {"heartbeat_filesystem": "tmpfs"}},
    ],
)
def test_settings_that_are_fine(settings):
    assert problems(member(**settings)) == {}


def file(changed_s, **values):
    return {"config_file": ConfigFile("/srv/gunicorn.conf.py", 1.0, tuple(values.items())), "config_age_s": changed_s}


def test_a_config_file_that_is_not_in_force():
    assert problems(member(more=file(700.0, graceful_timeout=60))) == {}
    assert problems(member(more=file(700.0, max_requests_jitter=0))) == {}
    assert problems(member(more=file(60.0, max_requests_jitter=0))) == {}, "touched, or changed where it does no harm"
    assert problems(member(timeout=60, more=file(700.0, timeout=9))) == {}, "the command line wins over it"

    def said(*family):
        return " ".join(check.text for check in traps.check(family) if check.code == "config-not-in-force")

    assert "was changed after" in said(member(more=file(60.0, max_requests_jitter=9)))
    assert "was changed" not in said(member(more=file(700.0, max_requests_jitter=9))), "a hook sets it"
    young = replace(member(pid=101), process=replace(member(pid=101).process, age_s=5.0))
    master = member("gunicorn-master", more=file(60.0, max_requests_jitter=9))
    assert "was changed after" in said(master, young), "the master has not read it, though a worker is younger"
    assert not said(member("gunicorn-master", more=file(60.0, max_requests_jitter=0)), young)


def inherited(using=(), **more):
    return tcp(9, inode=555, used_by=using, **GOOD | more)


def test_a_connection_from_before_the_fork():
    master, one, two = member("gunicorn-master", 99), member(pid=100), member(pid=101)

    def holding(*members, **more):
        return [replace(each, sockets=(inherited(**more),)) for each in members]

    assert problems(*holding(master, one, two)) == {"inherited-connection": WARN}
    assert problems(master, *holding(one, two, using=(100, 101))) == {"inherited-connection": ERROR}
    assert problems(*holding(replace(one, siblings=frozenset({101})), shared_with=(101,))) == {
        "inherited-connection": WARN
    }
    assert problems(*holding(replace(one, siblings=frozenset({101})), shared_with=(1, 102))) == {}, "not its sibling"
    assert problems(*holding(one, shared_with=(102,))) == {}, "a child of its own"
    for family in (holding(one, shared_with=(1,)), holding(master, one)):
        assert problems(*family) == {"inherited-connection": WARN}, "the next worker will get it from the master"
    assert problems(*holding(master, one), two) == {}
    assert problems(*holding(master, one, two, direction="in")) == {}
    assert problems(*(replace(each, sockets=(listen(inode=5),)) for each in (master, one, two))) == {}


def test_celerys_own_broker_connection_may_be_inherited():
    """The main process polls its connection to the broker: a child that has it too was started later, as a successor."""
    polled = {"polled": frozenset({777})}
    own, other = tcp(8, inode=777, **GOOD), inherited(shared_with=(1, 101))
    main = replace(member("celery-main", 99), sockets=(own, other), **polled)
    first = [replace(member("celery-child", pid), sockets=(other,), **polled) for pid in (100, 101)]
    later = [replace(each, sockets=(own, other)) for each in first]
    assert problems(main, *first) == {"inherited-connection": WARN}
    assert problems(main, *later) == {}
    unseen = [replace(each, polled=frozenset()) for each in (main, *first)]
    assert problems(*unseen) == {}, "what the main process polls was not seen"
    for child, code in ((first[0], {"inherited-connection": WARN}), (later[0], {})):
        assert problems(replace(child, siblings=frozenset({101}))) == code


def test_psycopg_3_has_an_extension_of_the_same_name():
    def paths(*names):
        return SimpleNamespace(regions=[SimpleNamespace(path=f"/usr/lib/{name}") for name in names])

    two, three = "psycopg2/_psycopg.cpython-311-x86_64-linux-gnu.so", "psycopg_binary/_psycopg.cpython-311-x86_64.so"
    assert c_clients._path(paths(three)) == ""
    assert c_clients._path(paths(three, two)).endswith(two)


def test_c_clients_under_greenlets():
    def serving(worker_class, patched, *sockets):
        more = {"c_clients": (CClient("psycopg2", patched),), "python_fds": frozenset()}
        return problems(member(worker_class=worker_class, sockets=sockets, more=more))

    assert serving("gevent", False, tcp(7, **GOOD)) == {"c-client-in-greenlets": ERROR}
    assert serving("gevent", False) == {"c-client-in-greenlets": WARN}
    assert serving("gunicorn.workers.geventlet.EventletWorker", False) == {"c-client-in-greenlets": WARN}
    assert serving("gevent", True) == {}
    assert serving("gevent", None) == {}
    assert serving("gthread", False) == {}
    own = member(worker_class="proj.Worker", more={"c_clients": (CClient("psycopg2", False),)})
    assert problems(own) == {}
    assert problems(replace(own, greenlets="gevent")) == {"c-client-in-greenlets": WARN}
    pool = replace(member("celery-main"), c_clients=(CClient("MySQLdb", False),))
    assert problems(pool) == {}
    assert problems(replace(pool, settings=(SettingFact("celery", "worker_pool", "gevent", "x"),))) == {
        "c-client-in-greenlets": WARN
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(60, "60", True), (60, 60.0, True), (True, 1, True), (True, "true", True), (None, 0, False), (5, 6, False)],
)
def test_one_setting_in_two_spellings(one, other, same):
    assert alike(one, other) is same


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"amqp": (AmqpFact("10.0.0.1:40007", "", "memory", client="pika", heartbeat_s=0.0),)}, "pika."),
        ({"amqp": (AmqpFact("10.0.0.1:40007", "", "memory", client="py-amqp", heartbeat_s=0.0),)}, "amqp.Connection"),
        ({"settings": (SettingFact("celery", "broker_url", "redis://broker:5672", "x"),)}, "broker_transport_options"),
        ({"own_timeouts": {7: None}}, "TCP_KEEPIDLE 30"),
    ],
)
def test_the_fix_names_the_clients_own_settings(more, word):
    (found,) = traps_connections.connections(replace(member("celery-main"), sockets=(tcp(7),), **more))
    assert word in found.check.fix
