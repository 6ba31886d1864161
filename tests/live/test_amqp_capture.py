"""`stucktrace amqp` on real clients of a real RabbitMQ: its counts are the broker's, its times the client's own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from stucktrace.collectors import packet_file, packets
from stucktrace.collectors.amqp_wire import Conversations

from tests.harness import command, kernel, namespaces, targets

pytestmark = pytest.mark.xdist_group("rabbitmq")
DEADLINE_S = 120
PUBLISHES = 10_000
SCHEMA = jsonschema.Draft202012Validator(
    json.loads(resources.files("stucktrace").joinpath("amqp.schema.json").read_text())
)


@dataclass
class Watched:
    """What a run of the command said, once it has ended."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    errors: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.process.returncode

    def summary(self) -> dict[str, Any]:
        """Of the only connection."""
        assert len(self.summaries) == 1, (self.summaries, self.errors)
        return self.summaries[0]

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.wait()

    def wait(self) -> None:
        self.process.wait(DEADLINE_S)
        self.errors = self.err.read_text()
        assert "Traceback" not in self.errors, self.errors
        lines = [json.loads(line) for line in self.out.read_text().splitlines()]
        for line in lines:
            SCHEMA.validate(line)
        self.events = [line for line in lines if line["type"] == "event"]
        self.summaries = [line for line in lines if line["type"] == "summary"]


@contextlib.contextmanager
def watching(pid: int, *options: str | Path, prefix: Sequence[str] = ()):
    """The command captures inside; it is asked to end, if it has not, when the block does."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*prefix, str(command.COMMAND), "amqp", str(pid), "--json", *map(str, options)],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env={**os.environ, "STUCKTRACE_DEBUG": "1"},
            )  # fmt: skip
        watched = Watched(process, out, err)
        try:
            kernel.wait_until(lambda: "watching" in err.read_text() or process.poll() is not None, "the capture")
            yield watched
            if process.poll() is None:
                watched.end()
        finally:
            process.kill()
            process.wait()


def wait_for_words(target: targets.Target, words: str, times: int = 1) -> None:
    kernel.wait_until(lambda: target.log().count(words) >= times, f"{words!r} from the target", DEADLINE_S)


def duplicate(client) -> None:
    """One in a hundred of the packets that the two ends send each other is sent twice."""
    ends = ((client.pair.here, client.pair.there_address), (client.pair.there, client.pair.here_address))
    for netns, other in ends:
        table = f"add table ip twice_{client.pair.there_device}"
        chain = f"{table.replace('table', 'chain')} out {{ type filter hook output priority 0; }}"
        rule = f"{table.replace('table', 'rule')} out ip daddr {other} numgen random mod 100 == 0 dup to {other}"
        namespaces.run(netns, "nft", "-f", "-", text=f"{table}\n{chain}\n{rule}\n")


def decoded(records) -> dict[str, Any]:
    """The totals of the only connection in these records of a capture file."""
    from stucktrace.sinks.amqp import Row, summary_as_json

    conversations = Conversations()
    for record in records:
        segment = packets.segment(record[0], record[2], record[1], record[3])
        assert segment is not None
        conversations.feed(segment)
    (fact,) = conversations.facts(records[-1][1])
    return summary_as_json(Row(fact.local, fact.remote, fact), 0)["totals"]


def scrambled(records, seed: int) -> list[tuple[int, float, bytes, int]]:
    """One in a hundred comes after the next one, and one in a hundred twice.

    They change places with what the same end sent: an answer cannot come before what it answers.
    """
    chance = random.Random(seed)
    found = list(records)
    exchanged = 0
    while exchanged < len(found) // 100:
        index = chance.randrange(1, len(found) - 1)
        if found[index][2][12:16] == found[index + 1][2][12:16]:
            found[index], found[index + 1] = found[index + 1], found[index]
            exchanged += 1
    for index in sorted(chance.sample(range(len(found)), len(found) // 100), reverse=True):
        found.insert(min(index + chance.randrange(5), len(found)), found[index])
    return found


@pytest.mark.timeout(600)
def test_ten_thousand_confirmed_publishes(rabbitmq, tmp_path):
    """From the middle of a connection on, with packets that come twice: the counts are RabbitMQ's own, and so are those
    read from the packet file, in and out of order, whole and from its middle on."""
    path = tmp_path / "packets.pcap"
    with (
        rabbitmq.client() as client,
        targets.start(
            "amqp_load.py", "py-amqp", client.url, "load", PUBLISHES // 2, netns=client.pair.here
        ) as publisher,
    ):
        duplicate(client)
        with watching(publisher.pid, "--pcap", path) as watched:
            for number in (1, 2):
                publisher.go()
                wait_for_words(publisher, "waiting", number)
            publisher.go()
            wait_for_words(publisher, "consumed")
        # One more was published before.
        waiting = json.loads(publisher.log().splitlines()[1])["waiting"]
    assert waiting == PUBLISHES + 1
    found = watched.summary()
    totals = found["totals"]
    assert (watched.status, watched.events) == (0, []), watched.events
    assert totals["publishes"] == totals["acks"] == PUBLISHES, found
    assert totals["deliveries"] == totals["consumer_acks"] == waiting, found
    assert (totals["unconfirmed"], totals["nacks"], found["gaps"], found["stuck"]) == (0, 0, 0, None), found
    assert found["mid_stream"] and found["confirms"]["count"] > 0.99 * PUBLISHES, found

    read = command.run("amqp", "--read", path, "--json")
    (again,) = map(json.loads, read.stdout.splitlines())
    assert (read.status, again["totals"]) == (0, totals)
    assert again["confirms"] == pytest.approx(found["confirms"], rel=0.02), found
    assert b"xxxx" not in path.read_bytes()
    with path.open("rb") as file:
        records = list(packet_file.read(file))
    assert decoded(scrambled(records, 1)) == totals
    for part in (1000, 9001, 17_002):
        before, after = decoded(records[:part]), decoded(records[part:])
        missed = PUBLISHES - before["publishes"] - after["publishes"]
        # Each publish is three frames.
        assert 0 <= missed <= 33, part


def redirect(netns: str, address: str, port: int, to_port: int) -> None:
    """As a sidecar has it done: what goes to that address arrives at a port of the loopback device."""
    namespaces.run(netns, "ip", "route", "add", address, "dev", "veth0")
    rules = (
        "add table ip sidecar",
        "add chain ip sidecar out { type nat hook output priority -100; }",
        f"add rule ip sidecar out ip daddr {address} tcp dport {port} redirect to :{to_port}",
    )
    namespaces.run(netns, "nft", "-f", "-", text="\n".join(rules) + "\n")


def test_confirm_times_through_a_sidecar_on_a_connection_that_is_opened_meanwhile(rabbitmq, tmp_path):
    """To a port of no meaning, translated on its way; the percentiles are the client's own within 10 %."""
    path = tmp_path / "packets.pcap"
    with (
        rabbitmq.client() as client,
        targets.start("tcp_delay.py", client.address, client.port, netns=client.pair.here) as proxy,
        targets.start("amqp_paced.py", "203.0.113.7", 7000, 400, netns=client.pair.here) as publisher,
        watching(publisher.pid, "--pcap", path) as watched,
    ):
        redirect(client.pair.here, "203.0.113.7", 7000, int(proxy.said))
        publisher.go()
        wait_for_words(publisher, "max_s")
        watched.end()
        own = json.loads(publisher.log())
    found = watched.summary()
    assert found["remote"] == "203.0.113.7:7000"
    assert (found["heartbeat_s"], found["heartbeat_source"], found["client"]) == (4, "tune-ok", "py-amqp"), found
    assert (found["mid_stream"], found["gaps"], found["unknown"]) == (False, 0, []), found
    assert found["totals"]["publishes"] == found["totals"]["acks"] == found["confirms"]["count"] == 400, found
    for name in ("p50_s", "p95_s", "p99_s"):
        assert found["confirms"][name] == pytest.approx(own[name], rel=0.1), (name, found["confirms"], own)
    assert watched.names() == ["opened"] and watched.status == 0
    with path.open("rb") as file:
        assert decoded(list(packet_file.read(file))) == found["totals"]
    assert b"test\0test" not in path.read_bytes()


def test_blocked_and_unblocked(rabbitmq):
    """By the memory alarm, on pika: while it lasts the exit status is 1, and the summary says what for."""
    with (
        rabbitmq.client() as client,
        targets.start("amqp_load.py", "pika", client.url, "blocked", 500, netns=client.pair.here) as publisher,
        watching(publisher.pid) as watched,
    ):
        publisher.go()
        wait_for_words(publisher, "waiting")
        with watching(publisher.pid) as meanwhile:
            with rabbitmq.alarm():
                publisher.go()
                kernel.wait_until(lambda: "blocked" in meanwhile.out.read_text(), "the blocked publisher")
                meanwhile.end()
            wait_for_words(publisher, "waiting", 2)
    blocked = meanwhile.summary()
    assert (meanwhile.status, meanwhile.names()[0], blocked["stuck"]) == (1, "blocked", "blocked"), blocked
    assert blocked["blocked"]["text"] and blocked["totals"]["publishes"] == 1, blocked
    found = watched.summary()
    # On a busy machine the alarm lasts for longer than a confirm may take: that is said, too.
    names = [name for name in watched.names() if name not in {"unconfirmed", "confirmed"}]
    assert (watched.status, names, found["stuck"]) == (0, ["blocked", "unblocked"], None), found
    assert found["totals"]["publishes"] == found["totals"]["acks"] == 1000, found


@pytest.mark.timeout(300)
def test_what_goes_wrong_is_one_line_and_the_right_status(rabbitmq, tmp_path):
    with (
        rabbitmq.client() as client,
        targets.start("amqp_load.py", "pika", client.url, "errors", 100, netns=client.pair.here) as publisher,
    ):
        dropped = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
        refused = command.run("amqp", publisher.pid, "--for", "1", prefix=dropped)
        assert (refused.status, refused.stdout, refused.stderr.count("\n")) == (3, "", 1), refused.stderr
        assert "grant CAP_NET_RAW" in refused.stderr
        quiet = command.run("amqp", publisher.pid, "--for", "0.5s")
        assert quiet.status == 4 and "nothing could be read: no AMQP frame passed" in quiet.stderr

        full, there = tmp_path / "full.pcap", tmp_path / "there.pcap"
        there.write_text("kept")
        refused = command.run("amqp", publisher.pid, "--for", "1", "--pcap", there)
        assert (refused.status, refused.stderr.count("\n"), there.read_text()) == (2, 1, "kept")
        with watching(publisher.pid, "--pcap", full, prefix=("prlimit", "--fsize=9000")) as watched:
            publisher.go()
            wait_for_words(publisher, "waiting")
        assert (watched.status, watched.summary()["totals"]["acks"]) == (3, 100)
        assert watched.errors.splitlines()[1:] == [
            f"stucktrace: {full} could not be written to its end: File too large; what is in it is whole"
        ]
        with full.open("rb") as file:
            assert 0 < decoded(list(packet_file.read(file)))["publishes"] < 100

        with watching(publisher.pid) as watched:
            publisher.go()
            wait_for_words(publisher, "waiting", 2)
            os.kill(publisher.pid, signal.SIGKILL)
            watched.wait()
        assert (watched.status, watched.summary()["totals"]["acks"], watched.summary()["open"]) == (0, 100, False)
        assert "has ended" in watched.errors
    gone = command.run("amqp", publisher.pid)
    assert (gone.status, gone.stderr.count("\n")) == (3, 1)
    for name, words in ((there, "no capture file"), ("/nowhere", "No such")):
        refused = command.run("amqp", "--read", name)
        assert (refused.status, refused.stderr.count("\n")) == (3, 1) and words in refused.stderr, refused.stderr
