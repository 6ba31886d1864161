"""Traps in the options of Celery's broker connections, those of AMQP and of Redis.

Measured with celery 5.7.0, kombu 5.7.0, amqp 5.4.2 and RabbitMQ 3.10 unless a rule says otherwise:
- `broker_heartbeat=30` alone: a publisher's connection negotiates 0; `broker_transport_options={"heartbeat": 30}`: 30.
- A publisher with a heartbeat that sends nothing for a while is closed by the broker (nothing sends beats for it): the
  next publish meets ECONNRESET, and arrives by Celery's retry; with `task_publish_retry=False` it fails.
- `socket_settings={"TCP_KEEPIDLE": 10}`: each connect raises TypeError; so does {"4": 10} and {4: 10.0}. A worker ends.
  The same of `socket_keepalive_options` with redis-py 8.1.0.
- A confirm that does not come (broker stopped): publish waits without end. `confirm_timeout` among the transport's
  options is ignored; given to `apply_async` (5.2 to 5.7) it ends the wait, and closing the channel waits instead.
  `read_timeout=3` ends all of it: after 9 s.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

from stucktrace.diagnosis.celery_view import NAMES, TRANSPORT, View, add, evidence, number, shown
from stucktrace.facts.settings import ERROR, NOT_SET, OK, WARN, Check, SettingFact, Value

VISIBILITY_S = 3600.0
"""kombu/transport/redis.py."""
_SOCKET_KEY = re.compile(r"\[(.+)\]$", re.DOTALL)


def checks(view: View) -> Iterator[Check]:
    if view.amqp:
        yield from _heartbeat(view)
        yield from _socket_options(view, "socket_settings")
        yield from _confirm(view)
    if view.redis:
        yield from _keepalive(view)
        yield from _visibility(view)
        yield from _redis_silence(view)


def _heartbeat(view: View) -> Iterator[Check]:
    """`no-consumer-heartbeat`: a worker has AMQP's heartbeat turned off.

    A broker that hangs is not noticed, and RabbitMQ keeps the messages of a worker that vanished.

    Warn: `broker_heartbeat` is set to 0 in a worker, and `broker_transport_options` has none either.

    Later: `broker_heartbeat = 30`.

    Not: a publisher, which does not take this setting.

    Try: `broker_heartbeat = 0` in an application's settings, then `stucktrace audit PID` of its worker.

    `publisher-heartbeat`: broker_heartbeat never reaches connections that publish.

    Connections that publish are made without it and negotiate none (measured);
    `broker_transport_options["heartbeat"]` reaches both.

    Warn: `broker_heartbeat` is set, and the transport's option is not.

    Later: `broker_transport_options = {"heartbeat": 30}`, added to what is there.

    Not: an application where the transport's options could not be read.

    Try: `broker_heartbeat = 30` alone in an application's settings, then `stucktrace audit PID`.

    `heartbeat-without-retry`: the next publish on a connection that idled fails.

    A publisher sends no heartbeats while it does nothing; after about two of them the broker closes the connection.
    Celery's retry hides that, unless it is turned off.

    Warn: publishers have a heartbeat, and `task_publish_retry` is False.

    Later: `task_publish_retry = True`.

    Not: a publisher without a heartbeat.

    Try: `broker_transport_options = {"heartbeat": 5}` and `task_publish_retry = False`, then `stucktrace audit
    PID`.
    """
    top, option = view.given("broker_heartbeat"), f"{TRANSPORT}.heartbeat"
    beat = number(view.option("heartbeat"))
    if top is not None and not top.value and not beat and view.value("app_role") == "worker":
        yield Check(
            "no-consumer-heartbeat",
            WARN,
            f"broker_heartbeat = {shown(top.value)}: a broker that hangs is not noticed, and RabbitMQ, which has TCP's "
            "keepalive off by default, keeps the messages of a worker that vanished",
            evidence(top),
            f"{view.spelled('broker_heartbeat')} = 30",
        )
    if beat:
        fact = view.fact(option)
        text = f"publishers and consumers negotiate a heartbeat of {beat:g} s ({option})"
        yield Check("publisher-heartbeat", OK, text, evidence(fact))
    elif top is not None and top.value and view.sure(option) and view.sure(TRANSPORT):
        yield Check(
            "publisher-heartbeat",
            WARN,
            f"broker_heartbeat = {shown(top.value)} never reaches connections that publish: they negotiate 0 (none)",
            (*evidence(top), f"{option} is not set; it is the one that publishers take"),
            add(view, {"heartbeat": top.value if number(top.value) else 30}),
        )
    retry = view.given("task_publish_retry")
    if beat and retry is not None and retry.value is False:
        yield Check(
            "heartbeat-without-retry",
            WARN,
            f"the broker closes a publisher's idle connection after about {2 * beat:g} s without its heartbeats, and "
            "task_publish_retry = False lets the next publish fail on it",
            (*evidence(view.fact(option)), *evidence(retry)),
            f"{view.spelled('task_publish_retry')} = True",
        )


def _socket_options(view: View, table: str) -> Iterator[Check]:
    """`string-keys`: every connection to the broker fails with TypeError.

    py-amqp and redis-py hand each key and value of `socket_settings` and `socket_keepalive_options` to setsockopt
    as it is; a key has to be a number such as `socket.TCP_KEEPIDLE`, not its name.

    Error: a key in force is text.

    Later: the dict with the constants, which the fix writes out.

    Not: `socket_keepalive_options` while `socket_keepalive` is off: redis-py does not look at them then.

    Try: `broker_transport_options = {"socket_settings": {"TCP_KEEPIDLE": 10}}`, then `stucktrace audit PID`.

    `socket-values`: every connection to the broker fails with TypeError, for a value is no whole number.

    setsockopt takes integers alone; `10.0` is none.

    Error: a value in force is no whole number.

    Later: the same value as a whole number.

    Not: a value that could not be read.

    Try: `broker_transport_options = {"socket_settings": {4: 10.0}}`, then `stucktrace audit PID`.
    """
    held = {
        match[1]: fact
        for name, fact in view.facts.items()
        if fact.source != NOT_SET and (match := _inside(name, f"{TRANSPORT}.{table}"))
    }
    # Of a key that is neither text nor a number its kind alone is known.
    wrong = {key: fact for key, fact in held.items() if key[0] in "'\""}
    if wrong:
        fixed = {_constant(key): fact.value for key, fact in held.items()}
        yield Check(
            "string-keys",
            ERROR,
            f"{table} has {_keys(wrong)}: every connection to the broker fails with TypeError, for a key has to be a "
            "number such as socket.TCP_KEEPIDLE",
            tuple(line for fact in wrong.values() for line in evidence(fact)),
            f'import socket; in {view.spelled(TRANSPORT)}: "{table}": '
            f"{{{', '.join(f'{key}: {shown(value)}' for key, value in fixed.items())}}}",
        )
        return
    values = {key: fact for key, fact in held.items() if fact.known and not isinstance(fact.value, int)}
    if values:
        key, fact = next(iter(values.items()))
        yield Check(
            "socket-values",
            ERROR,
            f"{table}[{key}] = {shown(fact.value)}: every connection to the broker fails with TypeError, for a value "
            "has to be a whole number",
            evidence(fact),
            f'in {view.spelled(TRANSPORT)}: "{table}": {{{_named(key)}: {_whole(fact.value)}}}',
        )
    elif held and all(key.isdigit() for key in held):
        yield Check("string-keys", OK, f"the keys of {table} are numbers", evidence(next(iter(held.values()))))


def _keepalive(view: View) -> Iterator[Check]:
    """`keepalive-options-ignored`: keepalive stays off on connections to Redis.

    redis-py looks at `socket_keepalive_options` only if `socket_keepalive` is on.

    Warn: the options are set, and `socket_keepalive` is known not to be.

    Later: `socket_keepalive: True` in `broker_transport_options`.

    Not: a broker other than Redis.

    Try: `broker_transport_options = {"socket_keepalive_options": {4: 10}}` with a redis:// broker, then `stucktrace
    audit PID`.
    """
    on, table = view.option("socket_keepalive"), "socket_keepalive_options"
    if on:
        yield from _socket_options(view, table)
        return
    options = [fact for name, fact in view.facts.items() if _inside(name, f"{TRANSPORT}.{table}")]
    if options and options[0].source != NOT_SET and view.sure(f"{TRANSPORT}.socket_keepalive"):
        yield Check(
            "keepalive-options-ignored",
            WARN,
            f"{table} is set and socket_keepalive is not: keepalive stays off on connections to Redis",
            evidence(options[0]),
            add(view, {"socket_keepalive": True}),
        )


def _confirm(view: View) -> Iterator[Check]:
    """`confirm-timeout`: a publish waits for its confirm without end.

    `confirm_timeout` among the transport's options is ignored (measured); what ends the wait there is
    `read_timeout`.

    Warn: `confirm_publish` and `confirm_timeout` are set, and `read_timeout` is not.

    Later: `read_timeout` in `broker_transport_options`.

    Not: confirms without either of the two: that is said as a remark.

    Try: `broker_transport_options = {"confirm_publish": True, "confirm_timeout": 5}`, then `stucktrace audit PID`.
    """
    option = view.fact(f"{TRANSPORT}.confirm_publish")
    if option is None or not option.value:
        return
    ignored, read = view.fact(f"{TRANSPORT}.confirm_timeout"), number(view.option("read_timeout"))
    if read:
        text = (
            f"each publish waits for the broker's confirm; read_timeout ends every wait for the broker after {read:g} s"
        )
        yield Check("confirm-timeout", OK, text, evidence(view.fact(f"{TRANSPORT}.read_timeout")))
    elif ignored is not None and view.lacks("read_timeout"):
        yield Check(
            "confirm-timeout",
            WARN,
            f"confirm_timeout = {shown(ignored.value)} in {TRANSPORT} is ignored: a publish waits for its confirm "
            "without end",
            evidence(ignored),
            add(view, {"read_timeout": ignored.value}),
        )
    elif view.lacks("read_timeout"):
        text = "each publish waits for the broker's confirm, and nothing but the network ends that wait: read_timeout "
        yield Check("confirm-timeout", OK, f"{text}in {TRANSPORT} would", evidence(option))


def _visibility(view: View) -> Iterator[Check]:
    """`visibility-timeout`: Redis hands out a task again while it still runs.

    With `task_acks_late` a task is acknowledged when it is done. Redis gives one that is not acknowledged in time
    to another worker: a long task runs twice.

    Warn: `task_acks_late` is on, and the task time limit is longer than `visibility_timeout` (an hour by default).

    Later: `visibility_timeout` of twice the time limit, in `broker_transport_options`.

    Not: tasks without a time limit: how long they run is not known.

    Try: `task_acks_late = True`, `task_time_limit = 7200` with a redis:// broker, then `stucktrace audit PID`.
    """
    late, limit = view.fact("task_acks_late"), view.fact("task_time_limit")
    if late is None or late.value is not True or not view.sure(f"{TRANSPORT}.visibility_timeout"):
        return
    visible = number(view.option("visibility_timeout")) or (VISIBILITY_S if view.lacks("visibility_timeout") else None)
    limits = [value for name in ("task_time_limit", "task_soft_time_limit") if (value := number(view.value(name)))]
    if visible is None or not limits:
        return
    if max(limits) > visible:
        yield Check(
            "visibility-timeout",
            WARN,
            f"tasks may run for {max(limits):g} s and Redis hands each one out again after {visible:g} s: with "
            "task_acks_late a long task runs twice",
            (*evidence(view.fact(f"{TRANSPORT}.visibility_timeout")), *evidence(limit), *evidence(late)),
            add(view, {"visibility_timeout": int(2 * max(limits))}),
        )
    else:
        text = f"Redis hands a task out again after {visible:g} s, longer than a task may run ({max(limits):g} s)"
        yield Check("visibility-timeout", OK, text)


def _redis_silence(view: View) -> Iterator[Check]:
    """`redis-silence`: nothing notices that the connection to Redis died.

    Without a timeout redis-py waits for a reply without end; kombu's health check, which would notice, was turned
    off.

    Warn: `health_check_interval` is 0, and there is neither `socket_timeout` nor `socket_keepalive`.

    Later: `health_check_interval: 25` in `broker_transport_options`, which is the default.

    Not: an interval that was not set.

    Try: `broker_transport_options = {"health_check_interval": 0}` with a redis:// broker, then `stucktrace audit
    PID`.
    """
    timeout, health = view.option("socket_timeout"), view.fact(f"{TRANSPORT}.health_check_interval")
    if timeout or health is None or health.value or view.option("socket_keepalive"):
        return
    if view.lacks("socket_timeout") or view.fact(f"{TRANSPORT}.socket_timeout") is not None:
        yield Check(
            "redis-silence",
            WARN,
            f"health_check_interval = {shown(health.value)} and no socket_timeout: nothing notices that the connection "
            "to Redis died",
            evidence(health),
            add(view, {"health_check_interval": 25}),
        )


def _inside(name: str, table: str) -> re.Match[str] | None:
    return _SOCKET_KEY.search(name) if name.startswith(f"{table}[") else None


def _keys(wrong: dict[str, SettingFact]) -> str:
    kinds = "a key that is no number" if len(wrong) == 1 else "keys that are no numbers"
    return f"{kinds}: {', '.join(wrong)}"


def _constant(key: str) -> str:
    """What a key has to be: socket.TCP_KEEPIDLE of "TCP_KEEPIDLE" and "socket.TCP_KEEPIDLE", 4 of "4"."""
    word = key.strip("'\"").rpartition(".")[2]
    if word.isdigit():
        return _named(word)
    return f"socket.{word}" if word.startswith("TCP_") and hasattr(socket, word) else f"(number of {word})"


def _named(key: str) -> str:
    return NAMES.get(key, key)


def _whole(value: Value) -> str:
    found = number(value)
    return f"{found:.0f}" if found is not None else "(a whole number)"
