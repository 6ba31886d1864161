"""The AMQP decoder: ten million hostile bytes, and 50,000 frames a second beside tshark on the same packets.

Hostile: random bytes as a stream, random and mutated bytes as bodies, and conversations of which single bytes are changed.
The speed: one pcap file read by the decoder and by tshark, and the command itself on a connection of that rate.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

from stucktrace.collectors import packet_file, packets
from stucktrace.collectors.amqp_wire import Conversations
from stucktrace.collectors.packets import ACK, Segment
from stucktrace.facts.amqp import AmqpChannel, AmqpFact

from tests.bench import Row
from tests.harness import command, kernel, targets
from tests.unit.amqp_talks import BROKER, CLIENT, Wire, confirmed, handshake, publish, segments_of

HOSTILE_BYTES = 10_000_000
FRAMES_PER_S = 50_000
MESSAGES = 25_000
LIVE_S = 8.0


def run() -> list[Row]:
    return [*hostile(), *from_a_file(), *live()]


def hostile() -> list[Row]:
    generator = random.Random(1)
    began = time.process_time()
    fed = wrong = 0
    for part in (random_bodies, mutated):
        part_fed, part_wrong = part(generator, HOSTILE_BYTES // 3)
        fed, wrong = fed + part_fed, wrong + part_wrong
    tracemalloc.start()
    try:
        part_fed, part_wrong, held = random_stream(generator, HOSTILE_BYTES - fed)
    finally:
        tracemalloc.stop()
    took_s = time.process_time() - began
    return [
        Row("hostile bytes decoded without a crash", fed + part_fed, "bytes", note=f"{took_s:.0f} s of CPU"),
        Row("wrong counts in them", wrong + part_wrong, "", note="wanted 0"),
        Row(
            "memory held after all of a stream without frames", held[-1] / 1e6, "MB",
            f"{held[0] / 1e6:.2f} MB after a quarter", "wanted: as much",
        ),
    ]  # fmt: skip


def random_stream(generator: random.Random, wanted: int) -> tuple[int, int, list[int]]:
    """Nothing in it is a frame; half of it is made of pieces that look like one. What is held after each quarter too."""
    conversations = Conversations({(CLIENT, BROKER)})
    looks = [b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50", b"\xce", b"\x03\0\x01\0\x01", b"\x08" + bytes(6), bytes(9)]
    fed, seq = 0, [7, 9]
    held: list[int] = []
    while fed < wanted:
        data = generator.randbytes(generator.randint(1, 1448))
        if generator.random() < 0.5:
            data = b"".join(generator.choices([*looks, data[:20]], k=100))
        side = generator.randrange(2)
        ends = (CLIENT, BROKER) if side else (BROKER, CLIENT)
        time_s = 1.0 + fed / 1e6
        conversations.feed(Segment(time_s, *ends, seq[side] % 2**32, ACK, data, len(data), seq[1 - side] % 2**32))
        seq[side] += len(data)
        fed += len(data)
        if fed * 4 > wanted * (len(held) + 1):
            held.append(tracemalloc.get_traced_memory()[0])
    (fact,) = conversations.facts(1e4)
    counted = sum((each.publishes or 0) + (each.acks or 0) + (each.deliveries or 0) for each in fact.channels)
    return fed, counted, held


def random_bodies(generator: random.Random, wanted: int) -> tuple[int, int]:
    """What bodies hold changes no count, from the beginning on and from the middle on."""
    fed = wrong = 0
    inner = b"".join(publish(2, b"inner") for _ in range(100))
    while fed < wanted:
        bodies = [generator.randbytes(3000), changed(generator, inner, 20), b"\xce" * 2000, inner]
        talk = handshake()
        for tag in range(1, 41):
            talk += confirmed(1, generator.choice(bodies), tag)
        wire = (
            Wire(generator.choice([536, 1448, 65483]))
            .open()
            .write(talk, generator if generator.random() < 0.3 else None)
        )
        fed += sum(len(each.payload) for each in wire.segments)
        channel = channel_1(decode(wire.segments))
        wrong += (channel.publishes, channel.acks, channel.unconfirmed) != (40, 40, 0)
        late = channel_1(decode(wire.segments[wire.starts[-20] :]))
        wrong += not (20 - 17 <= (late.publishes or 0) <= 20 and (late.acks or 0) <= 20)
    return fed, wrong


def mutated(generator: random.Random, wanted: int) -> tuple[int, int]:
    """A changed byte can hide frames or turn one into another, but it cannot make many of one."""
    fed = wrong = 0
    while fed < wanted:
        segments = segments_of(handshake() + confirmed(50, generator.randbytes(400)), generator)
        changes = generator.randint(1, 20)
        for _ in range(changes):
            index = generator.randrange(2, len(segments))
            segments[index] = segments[index]._replace(payload=changed(generator, segments[index].payload, 1))
        fed += sum(len(each.payload) for each in segments)
        for channel in decode(segments).channels:
            wrong += (channel.publishes or 0) > 50 + changes or (channel.acks or 0) > 50 + changes
    return fed, wrong


def changed(generator: random.Random, data: bytes, places: int) -> bytes:
    raw = bytearray(data)
    for _ in range(places if raw else 0):
        raw[generator.randrange(len(raw))] = generator.randrange(256)
    return bytes(raw)


def decode(segments: Iterable[Segment]) -> AmqpFact:
    conversations = Conversations({(CLIENT, BROKER)})
    for segment in segments:
        conversations.feed(segment)
    (fact,) = conversations.facts(1e4)
    return fact


def channel_1(fact: AmqpFact) -> AmqpChannel:
    return next(channel for channel in fact.channels if channel.number == 1)


def packet(segment: Segment) -> bytes:
    """As on the wire, but for its checksums."""

    def end(text: str) -> tuple[bytes, int]:
        address, _, port = text.partition(":")
        return bytes(map(int, address.split("."))), int(port)

    (source, source_port), (target, target_port) = end(segment.source), end(segment.destination)
    tcp = struct.pack(
        ">HHIIBBHHH", source_port, target_port, segment.seq, segment.ack, 0x50, segment.flags, 65535, 0, 0
    )
    length = 20 + len(tcp) + len(segment.payload)
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 6, 0, source, target) + tcp + segment.payload


def from_a_file() -> list[Row]:
    """Two shapes: each message and each ack its own packet, and a hundred in a packet, as a busy connection has them."""
    rows = []
    one = confirmed(MESSAGES, b"x" * 120)
    many = [
        (from_client, b"".join(data for _, data in one[at : at + 200 : 2]))
        for at in range(0, len(one), 200)
        for from_client, at in ((True, at), (False, at + 1))
    ]
    for shape, talk in (("one a packet", one), ("a hundred a packet", many)):
        segments = Wire(65_000, seq={True: 5, False: 7}).open().write([*handshake(), *talk]).segments
        frames = 13 + 4 * MESSAGES
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "packets.pcap")
            with path.open("wb") as file:
                writer = packet_file.PacketFile(file.fileno())
                for segment in segments:
                    raw = packet(segment)
                    writer.add(segment.time_s, raw, len(raw))
                writer.flush()
            ours_s, channel = ours(path)
            tshark_s, theirs = tshark(path)
        found = (channel.publishes or 0) + (channel.acks or 0)
        assert theirs == 2 * MESSAGES, theirs
        rows += [
            Row(
                f"CPU at 50,000 frames/s, {shape}", 100 * ours_s / frames * FRAMES_PER_S, "% of a core",
                f"tshark {100 * tshark_s / frames * FRAMES_PER_S:,.0f} %", f"{1e6 * ours_s / frames:.1f} us a frame",
            ),
            Row(f"publishes and acks missed, {shape}", 2 * MESSAGES - found, "", f"tshark {2 * MESSAGES - theirs}"),
        ]  # fmt: skip
    return rows


def ours(path: Path) -> tuple[float, AmqpChannel]:
    """CPU seconds from the open file to the facts."""
    list(packet_file.read(path.open("rb")))  # scapy is imported by now, as in a capture
    began = time.process_time()
    conversations = Conversations()
    with path.open("rb") as file:
        for link_type, time_s, raw, wire_bytes in packet_file.read(file):
            segment = packets.segment(link_type, raw, time_s, wire_bytes)
            if segment is not None:
                conversations.feed(segment)
    (fact,) = conversations.facts(1e4)
    return time.process_time() - began, channel_1(fact)


def tshark(path: Path) -> tuple[float, int]:
    """CPU seconds, its start (of an empty file) left out; how many publishes and acks it finds."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty.pcap")
        empty.write_bytes(path.read_bytes()[:24])
        start_s, _ = run_tshark(empty)
    took_s, found = run_tshark(path)
    return took_s - start_s, found


def run_tshark(path: Path) -> tuple[float, int]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = ["-n", "-d", "tcp.port==5672,amqp", "-T", "fields", "-e", "amqp.method.class", "-e", "amqp.method.method"]
    out = subprocess.run(
        ["tshark", "-r", str(path), "-Y", "amqp", *options], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = 0
    for line in out.stdout.splitlines():
        classes, _, methods = line.partition("\t")
        pairs = zip(classes.split(","), methods.split(","), strict=True)
        found += sum(pair in (("60", "40"), ("60", "80")) for pair in pairs)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, found


def live() -> list[Row]:
    """The command, from its start to its summary, on a connection of that rate."""
    with (
        targets.start("amqp_flood.py", FRAMES_PER_S, LIVE_S) as flood,
        tempfile.TemporaryDirectory() as folder,
    ):
        out, err = Path(folder, "out"), Path(folder, "err")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [str(command.COMMAND), "amqp", str(flood.pid), "--json"],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        try:
            kernel.wait_until(lambda: "watching" in err.read_text() or process.poll() is not None, "the capture", 60)
            flood.go()
            kernel.wait_until(lambda: "sent" in flood.log(), "the end of the flood", 120)
            process.send_signal(2)
            process.wait(120)
        finally:
            process.kill()
            process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        _, sent, took_s = flood.log().split()
        summary = next(line for line in map(json.loads, out.read_text().splitlines()) if line["type"] == "summary")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    frames = 4 * int(sent)
    totals = summary["totals"]
    missed = 2 * int(sent) - totals["publishes"] - totals["acks"]
    rate = frames / float(took_s)
    return [
        Row(
            "live: CPU of `stucktrace amqp` at that rate",
            100 * cpu_s / float(took_s),
            "% of a core",
            note=f"{rate:,.0f} frames/s",
        ),
        Row(
            "live: publishes and acks missed",
            missed,
            f"of {2 * int(sent):,}",
            note=f"{summary['gaps']} gaps in the capture",
        ),
    ]
