"""`stucktrace correlate` over what a real RabbitMQ, a real gunicorn and a real agent wrote of the same hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import agent, brokers, command, kernel

Json = dict[str, Any]
TIMEOUT_S = 8


def correlate(*arguments: str | Path, status: int = 0) -> Json:
    done = command.run("correlate", "--json", *map(str, arguments))
    assert done.status == status, (done.status, done.stdout, done.stderr)
    answer: Json = json.loads(done.stdout)
    assert answer["schema"] == "stucktrace.correlate/1"
    return answer


def delay(answer: Json, event: str, since: str) -> Json:
    (found,) = [one for one in answer["delays"] if (one["event"], one["since"]) == (event, since)]
    return found


@pytest.mark.xdist_group("rabbitmq")
def test_an_abrupt_close_and_missed_heartbeats(rabbitmq: brokers.Broker, tmp_path: Path) -> None:
    """One worker waits for an answer until it is killed. The other one's broker gives its connection up before, so that
    the last look finds a socket without an address: the time alone tells there."""
    assert rabbitmq.log is not None
    before = rabbitmq.log.stat().st_size
    log, alerts, gunicorn_log = tmp_path / "rabbit.log", tmp_path / "alerts.jsonl", tmp_path / "gunicorn.log"
    with (
        rabbitmq.client() as broker,
        agent.gunicorn("--timeout", TIMEOUT_S, workers=2, netns=broker.pair.here) as server,
        agent.watching(server.master) as watcher,
        server.request(f"/beats?url={broker.url}"),
        server.request(f"/call?url={broker.url}"),
    ):
        kernel.wait_until(lambda: server.output.read_text().count("WORKER TIMEOUT") == 2, "both workers' end")
        kernel.wait_until(lambda: b"unexpectedly" in rabbitmq.log.read_bytes()[before:], "the abrupt close in the log")
        while sum(event["code"] == "worker-timeout" for event in watcher.events) < 2:
            assert watcher.read(60) is not None, agent.summaries(watcher.events)
        log.write_bytes(rabbitmq.log.read_bytes()[before:])
        alerts.write_text("".join(json.dumps(event) + "\n" for event in watcher.events))
        gunicorn_log.write_text(server.output.read_text())
        kernel.wait_until(lambda: len(list(watcher.journals.glob("*worker-timeout*"))) == 2, "both journals")
        answers = [
            correlate("--broker-log", log, *source)
            for source in (("--alerts", alerts), ("--journal", watcher.journals))
        ]
    for answer in answers:
        pairs = {pair["event"]["kind"]: pair for pair in answer["pairs"]}
        closed, missed = pairs["closed-abruptly"], pairs["missed-heartbeats"]
        assert (closed["confidence"], closed["by"]) == ("proven", "connection")
        assert closed["event"]["client"] == closed["connection"]["local"] == closed["hung_on"]["local"]
        assert -0.5 < closed["after_kill_s"] < 5 and closed["after_stuck_s"] > TIMEOUT_S - 2
        assert missed["confidence"] == "likely" and missed["event"]["heartbeat_timeout_s"] == 2
        assert missed["after_kill_s"] < 0 and missed["hung_on"] is None
        assert "the kill is the cause" in delay(answer, "closed-abruptly", "kill")["means"]
        assert "gunicorn's timeout" in delay(answer, "closed-abruptly", "stuck")["means"]
        assert "heartbeat" in delay(answer, "missed-heartbeats", "stuck")["means"]
    text = command.run("correlate", "--broker-log", str(log), "--alerts", str(alerts)).stdout
    assert text.startswith("2 of 2 worker timeouts are in the broker's log: 1 by connection (proven), 1 by time"), text

    # gunicorn's own log knows no connection and no wait: of two killed at once, one left its connection to the kernel.
    answer = correlate("--broker-log", log, "--gunicorn-log", gunicorn_log)
    assert [(pair["confidence"], pair["event"]) for pair in answer["pairs"]] == [("possible", closed["event"])]
