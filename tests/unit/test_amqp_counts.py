"""A broker that confirms as brokers may, and captures as they happen: what is counted is held against what was done."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import spec
from stucktrace.collectors.amqp_wire import Conversations
from stucktrace.collectors.packets import Segment
from stucktrace.facts.amqp import AmqpFact

from tests.unit.amqp_talks import BROKER, CLIENT, Wire, handshake, method, publish

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CHANNELS = (1, 2)


@dataclass
class Story:
    """What client and broker did, and the segments that it took."""

    generator: random.Random
    wire: Wire = field(default_factory=lambda: Wire(mss=9999).open())
    done: list[tuple[int, str, int, int]] = field(default_factory=list)
    """(first segment, "publish", "ack" or "nack", channel, how many messages)."""
    open: dict[int, set[int]] = field(default_factory=lambda: {number: set() for number in CHANNELS})
    begin: int = 0
    """The segment behind the handshake."""

    def tell(self) -> Story:
        self.wire.write(
            [*handshake(), (True, method(2, spec.Channel.Open())), (True, method(2, spec.Confirm.Select()))]
        )
        self.begin = len(self.wire.segments)
        self.wire.mss = self.generator.choice([200, 1448, 60000])
        window = self.generator.choice([1, 5, 50, 10**9])
        tags = dict.fromkeys(CHANNELS, 0)
        for _ in range(self.generator.randint(5, 100)):
            channel = self.generator.choice(CHANNELS)
            room = window - len(self.open[channel])
            if room and (not self.open[channel] or self.generator.random() < 0.5):
                number = self.generator.randint(1, min(room, 5))
                self.open[channel] |= set(range(tags[channel] + 1, tags[channel] + 1 + number))
                tags[channel] += number
                bodies = [self.generator.randbytes(self.generator.choice([0, 20, 400, 3000])) for _ in range(number)]
                self._do("publish", channel, number, b"".join(publish(channel, body) for body in bodies))
            else:
                self._settle(channel)
        return self

    def _settle(self, channel: int) -> None:
        waiting = self.open[channel]
        if not waiting:
            return
        kind = self.generator.choice(["ack", "ack", "ack", "nack"])
        multiple = self.generator.random() < 0.3
        tag = self.generator.choice([min(waiting), self.generator.choice(sorted(waiting))])
        settled = {each for each in waiting if each <= tag} if multiple else {tag}
        waiting -= settled
        answer = spec.Basic.Ack if kind == "ack" else spec.Basic.Nack
        self._do(kind, channel, len(settled), method(channel, answer(tag, multiple)))

    def _do(self, what: str, channel: int, number: int, data: bytes) -> None:
        self.done.append((len(self.wire.segments), what, channel, number))
        cuts = self.generator if self.generator.random() < 0.2 else None
        self.wire.write([(what == "publish", data)], cuts)

    def truth(self, channel: int, first: int = 0) -> Counter[str]:
        found: Counter[str] = Counter()
        for segment, what, where, number in self.done:
            if where == channel and segment >= first:
                found[what] += number
        return found


def facts(segments: list[Segment]) -> AmqpFact:
    conversations = Conversations({(CLIENT, BROKER)})
    for segment in segments:
        conversations.feed(segment)
    (fact,) = conversations.facts(segments[-1].time_s + 60)
    return fact


@MANY
@given(st.integers(0, 2**32), st.sampled_from([0, 3, 15]), st.integers(0, 5))
def test_all_is_counted_of_what_was_captured_from_the_beginning(seed: int, disorder: int, again: int) -> None:
    story = Story(random.Random(seed)).tell()
    segments, begin = story.wire.segments, story.begin
    places = sorted((index + story.generator.randint(0, disorder), index) for index in range(begin, len(segments)))
    captured = [*segments[:begin], *(segments[index] for _, index in places)]
    for _ in range(again):
        place = story.generator.randrange(2, len(captured))
        captured.insert(story.generator.randint(place + 1, len(captured)), captured[place])
    fact = facts(captured)
    settled = 0
    for channel in fact.channels:
        truth = story.truth(channel.number)
        settled += truth["ack"] + truth["nack"]
        assert (channel.publishes, channel.acks, channel.nacks) == (truth["publish"], truth["ack"], truth["nack"])
        assert (channel.unconfirmed, channel.unconfirmed_exact) == (len(story.open[channel.number]), True)
    assert (fact.confirms.count if fact.confirms else 0) == settled and not fact.unknown


@MANY
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_of_a_part_no_more_is_claimed_than_it_shows(seed: int, lost: int) -> None:
    """Without `lost` the capture begins in the middle, between two writes."""
    story = Story(random.Random(seed)).tell()
    first = 0 if lost else story.generator.choice(story.done)[0]
    captured = story.wire.segments[first:]
    for _ in range(min(lost, len(captured) - story.begin - 2)):
        del captured[story.generator.randrange(story.begin, len(captured) - 1)]
    fact = facts(captured)
    counted_by_tags = "counted by their tags" in str(fact.unknown)
    waits = "not yet those before them" in str(fact.unknown)
    for channel in fact.channels:
        truth = story.truth(channel.number, first)
        settled = (channel.acks or 0) + (channel.nacks or 0)
        assert (channel.publishes or 0) <= truth["publish"]
        assert settled <= truth["ack"] + truth["nack"] or counted_by_tags
        assert channel.unconfirmed is None or waits or channel.unconfirmed <= len(story.open[channel.number])
        if channel.unconfirmed_exact:
            assert (settled, channel.unconfirmed) == (truth["ack"] + truth["nack"], len(story.open[channel.number]))
        else:
            assert fact.unknown
