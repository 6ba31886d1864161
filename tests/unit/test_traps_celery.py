"""The traps in Celery's settings, each alone, beside what looks like it and is fine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.collectors.celery_settings import _options
from stucktrace.diagnosis import traps_celery
from stucktrace.facts import ProcessFact, WorkerFact
from stucktrace.facts.settings import (
    CHANGED_SINCE,
    COMPUTED,
    DEFAULT,
    ERROR,
    MEMORY,
    OK,
    SET_IN_CODE,
    WARN,
    SettingFact,
)

DEFAULTS = {
    "broker_heartbeat": 120,
    "broker_pool_limit": 10,
    "broker_connection_retry": True,
    "task_publish_retry": True,
    "task_acks_late": False,
    "task_time_limit": None,
    "task_soft_time_limit": None,
    "worker_pool": "prefork",
    "worker_prefetch_multiplier": 4,
    "worker_max_tasks_per_child": None,
    "worker_max_memory_per_child": None,
}


def given(url="amqp://broker:5672", namespace="", options=None, role="worker", **set_to):
    """The facts of an application with these settings, the others left as they are by default."""
    facts = {name: SettingFact("celery", name, value, DEFAULT, True) for name, value in DEFAULTS.items()}
    set_to |= {"broker_url": url, "app_namespace": namespace, "app_role": role}
    set_to |= {f"broker_transport_options.{name}": value for name, value in (options or {}).items()}
    set_to["broker_transport_options"] = f"{len(options or {})} options"
    facts |= {name: SettingFact("celery", name, value, SET_IN_CODE, True) for name, value in set_to.items()}
    name = "broker_transport_options"
    if namespace:
        facts[name] = replace(facts[name], source="conf.py:7")
    if not options and not namespace:
        facts[name] = replace(facts[name], source=DEFAULT)
    return facts


def problems(facts, process=None):
    return {check.code: check for check in traps_celery.checks(list(facts.values()), process) if check.status != OK}


def only(facts, process=None):
    (check,) = problems(facts, process).values()
    assert check.fix and check.evidence
    return check


def test_no_celery_no_word():
    assert traps_celery.checks([]) == ()
    assert traps_celery.checks([SettingFact("gunicorn", "timeout", 30, DEFAULT)]) == ()


GOOD = {"confirm_publish": True, "heartbeat": 30, "read_timeout": 20, "socket_settings[4]": 30}


@pytest.mark.parametrize(
    "facts",
    [
        given(),
        given("redis://broker:6379"),
        given(options=GOOD, broker_heartbeat=30, worker_max_tasks_per_child=1000, broker_pool_limit=20),
        given(options={"confirm_publish": True, "heartbeat": 30}),
        given("redis://broker", options={"visibility_timeout": 7200}, task_acks_late=True, task_time_limit=3600),
        # What Redis does not know does no harm there, and Redis' options none to RabbitMQ.
        given("redis://broker", options={"socket_settings['TCP_KEEPIDLE']": 1, "confirm_publish": True}),
        given("redis://broker", broker_heartbeat=30),
        given(options={"visibility_timeout": 1}, task_acks_late=True, task_time_limit=3600),
        given("sqs://", broker_heartbeat=30),
    ],
)
def test_a_clean_configuration_is_fine(facts):
    assert not problems(facts)


def test_a_heartbeat_that_publishers_never_get():
    check = only(given(broker_heartbeat=20, namespace="CELERY_"))
    assert (check.code, check.status) == ("publisher-heartbeat", WARN)
    assert check.fix == 'CELERY_BROKER_TRANSPORT_OPTIONS.update({"heartbeat": 20}), behind conf.py:7'
    assert "publisher-heartbeat" not in problems(given(broker_heartbeat=20, options={"heartbeat": 20}))


def test_nothing_is_concluded_from_options_that_were_not_read():
    facts = given(broker_heartbeat=20)
    facts["broker_transport_options"] = SettingFact(
        "celery", "broker_transport_options", None, SET_IN_CODE, True, known=False
    )
    assert not problems(facts)
    facts = given(broker_heartbeat=20)
    name = "broker_transport_options.heartbeat"
    facts[name] = SettingFact("celery", name, None, SET_IN_CODE, True, known=False)
    assert not problems(facts)


def test_consumers_without_a_heartbeat():
    assert only(given(broker_heartbeat=0)).code == "no-consumer-heartbeat"
    assert not problems(given(broker_heartbeat=0, role="publisher")), "a process that only publishes consumes nothing"


def test_idle_publishers_are_closed_and_no_retry():
    check = only(given(options={"heartbeat": 10}, task_publish_retry=False))
    assert check.code == "heartbeat-without-retry" and "20 s" in check.text
    assert not problems(given(task_publish_retry=False))


@pytest.mark.parametrize(
    ("key", "fixed"),
    [
        ("'TCP_KEEPIDLE'", "socket.TCP_KEEPIDLE: 10"),
        ("'socket.TCP_USER_TIMEOUT'", "socket.TCP_USER_TIMEOUT: 10"),
        ("'4'", "socket.TCP_KEEPIDLE: 10"),
        ("'nonsense'", "(number of nonsense): 10"),
    ],
)
def test_keys_that_are_no_numbers(key, fixed):
    check = only(given(options={f"socket_settings[{key}]": 10}))
    assert (check.code, check.status) == ("string-keys", ERROR)
    assert fixed in check.fix


def test_a_key_of_another_kind_may_be_a_number():
    assert not problems(given(options={"socket_settings[(TcpOption)]": 10, "socket_settings[4]": 10}))


@pytest.mark.parametrize(("on", "code"), [(True, "string-keys"), (None, "keepalive-options-ignored")])
def test_options_of_redis_keepalive(on, code):
    options = {"socket_keepalive_options['TCP_KEEPIDLE']": 10, **({"socket_keepalive": on} if on else {})}
    assert only(given("redis://broker", options=options)).code == code
    assert not problems(given("redis://broker", options={"socket_keepalive_options[4]": 10, "socket_keepalive": True}))


def test_a_value_that_is_no_whole_number():
    check = only(given(options={"socket_settings[4]": 10.0}))
    assert (check.code, check.status) == ("socket-values", ERROR) and "socket.TCP_KEEPIDLE: 10" in check.fix


def test_a_confirm_timeout_where_nobody_reads_it():
    check = only(given(options={"confirm_publish": True, "confirm_timeout": 5}))
    assert check.code == "confirm-timeout" and '"read_timeout": 5' in check.fix
    assert not problems(given(options={"confirm_timeout": 5}))


@pytest.mark.parametrize("limit", [0, None])
def test_no_pool_of_connections(limit):
    assert only(given(broker_pool_limit=limit)).code == "no-connection-pool"


@pytest.mark.parametrize("count", [1, 7])
def test_few_tasks_a_child(count):
    assert only(given(worker_max_tasks_per_child=count)).code == "max-tasks-per-child"
    # Other pools have no children, and a publisher none at all.
    assert not problems(given(worker_max_tasks_per_child=count, worker_pool="threads"))
    assert not problems(given(worker_max_tasks_per_child=count, role="publisher"))


def test_a_memory_limit_below_what_a_child_begins_with():
    child = ProcessFact(1, 1, 0, 0, "", (), "S", rss_bytes=90 << 20, worker=WorkerFact("celery-child"))
    assert only(given(worker_max_memory_per_child=50_000), child).code == "max-memory-per-child"
    assert not problems(given(worker_max_memory_per_child=500_000), child)
    assert not problems(given(worker_max_memory_per_child=50_000, worker_pool="threads"), child)
    assert not problems(given(worker_max_memory_per_child=50_000))


@pytest.mark.parametrize(("options", "limit"), [({}, 7200), ({"visibility_timeout": 60}, 300)])
def test_redis_hands_a_task_out_while_it_runs(options, limit):
    check = only(given("redis://broker", options=options, task_acks_late=True, task_time_limit=limit))
    assert check.code == "visibility-timeout" and f'"visibility_timeout": {2 * limit}' in check.fix
    assert not problems(given("redis://broker", options=options, task_time_limit=limit))


def test_redis_with_its_health_check_turned_off():
    assert only(given("redis://broker", options={"health_check_interval": 0})).code == "redis-silence"
    assert not problems(given("redis://broker", options={"health_check_interval": 0, "socket_timeout": 30}))


def test_other_settings_that_hurt():
    assert only(given(worker_prefetch_multiplier=0)).code == "prefetch-unlimited"
    assert only(given(broker_connection_retry=False)).code == "no-connection-retry"


def test_a_dict_that_an_overlay_replaced():
    facts = given(options={"socket_settings[4]": 1}, namespace="CELERY_")
    name = "broker_transport_options.heartbeat"
    facts[name] = SettingFact("celery", name, None, "not set", True, others=(("proj.base.CELERY_B (base.py:3)", 30),))
    check = only(facts)
    assert check.code == "settings-overlay" and "proj.base.CELERY_B (base.py:3) sets heartbeat" in check.text
    assert check.fix == 'CELERY_BROKER_TRANSPORT_OPTIONS.update({"heartbeat": 30}), behind conf.py:7'
    assert MEMORY not in check.text
    # What this broker does not take is no loss.
    facts["broker_url"] = SettingFact("celery", "broker_url", "redis://broker", SET_IN_CODE, True)
    assert not problems(facts)


def test_socket_settings_that_an_overlay_replaced():
    """What is not set has no value that could be wrong, and each option is said once, with its file's line."""
    facts = given(options={"confirm_publish": True})
    for option, value in (("socket_settings[4]", 10), ("socket_settings['5']", 5), ("heartbeat", 20)):
        name = f"broker_transport_options.{option}"
        places = (("base.broker_transport_options", value), ("/srv/base.py:2", value))
        facts[name] = SettingFact("celery", name, None, "not set", True, others=places)
    name = "broker_transport_options.socket_settings"
    facts[name] = SettingFact("celery", name, None, "not set", True, others=(("/srv/base.py:2", COMPUTED),))
    check = only(facts)
    assert check.text.startswith("/srv/base.py:2 sets socket_settings, heartbeat, and the running process")
    assert len(check.evidence) == 3
    assert '"socket_settings": {socket.TCP_KEEPIDLE: 10, \'5\': 5}, "heartbeat": 20' in check.fix


def test_options_that_were_put_into_the_default_in_place():
    """`app.conf.broker_transport_options.update(...)` changes the dict of the defaults."""
    facts = list(_options("broker_transport_options", [({"heartbeat": 9}, DEFAULT)]))
    assert [(fact.value, fact.source, fact.others) for fact in facts] == [
        ("1 option", SET_IN_CODE, ()),
        (9, SET_IN_CODE, ()),
    ]


def test_an_object_of_settings_that_another_replaced():
    facts = given()
    where = ("/srv/base.py:2 (broker_heartbeat)", 30)
    facts["broker_heartbeat"] = SettingFact("celery", "broker_heartbeat", 120, DEFAULT, True, others=(where,))
    check = only(facts)
    assert check.code == "settings-overlay" and check.fix == "broker_heartbeat = 30"
    # That a stronger one gives another value is what settings are for.
    facts["broker_heartbeat"] = SettingFact("celery", "broker_heartbeat", 120, SET_IN_CODE, True, others=(where,))
    assert "settings-overlay" not in problems(facts)


def test_a_file_that_was_changed_since_the_start():
    facts = given(broker_pool_limit=10)
    where = (f"/srv/base.py:2 (broker_pool_limit){CHANGED_SINCE}", 50)
    facts["broker_pool_limit"] = SettingFact("celery", "broker_pool_limit", 10, SET_IN_CODE, True, others=(where,))
    check = only(facts)
    assert check.code == "settings-changed" and "restart" in check.fix
