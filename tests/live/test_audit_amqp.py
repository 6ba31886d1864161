"""What `stucktrace audit` knows of AMQP connections that nobody uses just now, against what the broker negotiated."""

from __future__ import annotations

import json

import pytest

from tests.harness import brokers, command, targets


@pytest.mark.xdist_group("rabbitmq")
def test_heartbeats_and_confirms_of_idle_connections(rabbitmq: brokers.Broker) -> None:
    env = {"BROKER_URL": rabbitmq.url}
    with targets.start("amqp_idle.py", netns=rabbitmq.pair.here, env=env) as target:
        answer = json.loads(command.run("audit", target.pid, "--json").stdout)
        found = [each for each in answer["connections"] if each["remote"].endswith(":5672")]
        assert sorted(each["heartbeat_s"] for each in found) == [0, 20, 33], answer
        (confirming,) = (each for each in found if each["heartbeat_s"] == 0)
        assert confirming["confirms"] is True
        assert confirming["keepalive"]["on"], "py-amqp turns it on, so the missing heartbeat is no trap"
        assert answer["status"] == "ok"
