"""One AMQP channel as its frames show it: publishes and their confirms, deliveries and their acks, consumers. No I/O.

What a channel is (confirm mode, transactions, which tag comes next) is known from its channel.open or confirm.select
on; of a channel that was open before the capture, or across a gap in it, only what later frames prove.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import replace

from stucktrace.collectors.amqp_confirms import ExactTags, InferredTags, Latencies
from stucktrace.collectors.amqp_methods import CLIENT
from stucktrace.facts.amqp import AmqpChannel, AmqpMethod

PLAIN, CONFIRM, TX = "plain", "confirm", "tx"

MOST_DELIVERIES = 20_000
_MOST_CONSUMERS = 1024
_MOST_EARLY = 1024


class Channel:
    """The counters are attributes: the frames' handlers are the hot path."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.mode: str | None = None
        """None: not known."""
        self.publishes = self.acks = self.nacks = self.returns = 0
        self.deliveries = self.consumer_acks = self.consumer_nacks = 0
        self.blurred_consumer_acks = False
        self.consumers: dict[str, bool | None] = {}
        """Tag -> whether it needs no acks."""
        self.closed: AmqpMethod | None = None
        self.closed_by = ""
        self.closed_s = 0.0
        self.tags: ExactTags | InferredTags = InferredTags()
        self._earlier: ExactTags | None = None
        """Publishes from before a gap, whose tags are known."""
        self._latencies = Latencies()
        """Of what `tags` was before."""
        self._unacked: OrderedDict[int, None] = OrderedDict()
        self._asked: deque[bool] = deque(maxlen=64)
        """no-ack of the basic.get and basic.consume that wait for their answer."""
        self._no_ack: set[str] = set()
        self._early: list[tuple[int, bool, float, bool]] = []
        """Acks (as `confirm` takes them) of publishes that were not seen yet."""
        self._from_open = False
        """All deliveries were seen."""

    # What the channel is.

    def opened(self) -> None:
        """A new channel under this number. What was counted under it goes on."""
        self.mode = PLAIN
        self._from_open = True
        self.closed, self.closed_by = None, ""
        self._set_tags(InferredTags())
        self._earlier = None
        self._early.clear()
        self.consumers.clear()
        self._no_ack.clear()
        self._asked.clear()
        self._unacked.clear()

    def confirms_selected(self) -> None:
        if self.mode != CONFIRM:
            self._set_tags(ExactTags())
        self.mode = CONFIRM

    def transactional(self) -> None:
        if self.mode != TX:
            self._set_tags(InferredTags())
        self.mode = TX

    def _set_tags(self, tags: ExactTags | InferredTags) -> None:
        self._latencies.add_all(self.tags.latencies)
        self.tags = tags

    def publishes_missed(self) -> None:
        """A gap in what the client sent."""
        if self.mode == PLAIN:
            self.mode = None
        elif self.mode == CONFIRM:
            if isinstance(self.tags, ExactTags):
                self._earlier = self.tags
                self.tags = InferredTags(self.tags.last)
                self._confirm_early()
            else:
                # Their tags are higher than thought from here on; the times taken so far stand.
                self._latencies.add_all(self.tags.latencies)
                self.tags.latencies.clear()
        self.blurred_consumer_acks = True

    def acks_missed(self) -> None:
        """A gap in what the broker sent."""
        self._from_open = False
        self.blurred_consumer_acks = True
        self.tags.acks_missed()
        if self._earlier is not None:
            self._earlier.acks_missed()

    def counts(self, sender: str) -> tuple[int, int, int, int]:
        """What was counted of one side's frames."""
        if sender == CLIENT:
            return self.publishes, self.consumer_acks, self.consumer_nacks, 0
        return self.acks, self.nacks, self.returns, self.deliveries

    def set_counts(self, sender: str, counts: tuple[int, int, int, int]) -> None:
        """What was counted since was wrong; what the channel is, is not known then."""
        if counts == self.counts(sender):
            return
        if sender == CLIENT:
            self.publishes, self.consumer_acks, self.consumer_nacks, _ = counts
        else:
            self.acks, self.nacks, self.returns, self.deliveries = counts
            self.consumers.clear()
            self._unacked.clear()
        self.mode = None
        self.tags, self._earlier = InferredTags(), None
        self._early.clear()

    # Publisher.

    def publish(self, time_s: float) -> None:
        self.publishes += 1
        if self.mode == CONFIRM or self.mode is None:
            self.tags.publish(time_s)
            if self._early:
                self._confirm_early()

    def confirm(self, tag: int, multiple: bool, time_s: float, positive: bool) -> None:
        if self.mode is None:
            self.mode = CONFIRM  # the broker acks nothing else
        if self.mode == TX:
            return
        tags = self.tags
        if self.mode == PLAIN or (isinstance(tags, ExactTags) and tag > tags.last):
            # The capture brings the ack before its publish.
            self._early.append((tag, multiple, time_s, positive))
            if len(self._early) > _MOST_EARLY:
                # So many do not come early: publishes were missed.
                self.publishes_missed()
                self._early.clear()
            return
        count = 0
        earlier = self._earlier
        if earlier is not None:
            if multiple or tag <= earlier.last:
                count = earlier.settle(min(tag, earlier.last), multiple, time_s)
            if tag > earlier.last or not tag:
                inferred = self.tags.settle(tag, multiple, time_s)
                count += inferred
        else:
            count = self.tags.settle(tag, multiple, time_s)
        if positive:
            self.acks += count
        else:
            self.nacks += count

    def _confirm_early(self) -> None:
        """Acks whose publishes have come by now; all of them where the tags are not known any more."""
        early, self._early = self._early, []
        for each in early:
            self.confirm(*each)

    # Consumer.

    def consume(self, tag: str, no_ack: bool, nowait: bool) -> None:
        if nowait:
            self._consumes(tag, no_ack)
        else:
            self._asked.append(no_ack)

    def consume_ok(self, tag: str) -> None:
        self._consumes(tag, self._asked.popleft() if self._asked else None)

    def _consumes(self, tag: str, no_ack: bool | None) -> None:
        if len(self.consumers) < _MOST_CONSUMERS:
            self.consumers[tag] = no_ack
            if no_ack:
                self._no_ack.add(tag)

    def cancelled(self, tag: str) -> None:
        self.consumers.pop(tag, None)
        self._no_ack.discard(tag)

    def get(self, no_ack: bool) -> None:
        self._asked.append(no_ack)

    def get_answered(self, tag: int | None) -> None:
        """`tag` None: the queue was empty."""
        no_ack = self._asked.popleft() if self._asked else None
        if tag is not None:
            self.deliver(tag, None, bool(no_ack))

    def deliver(self, tag: int, consumer: str | None, no_ack: bool = False) -> None:
        self.deliveries += 1
        if consumer is not None and consumer not in self.consumers:
            self._consumes(consumer, None)
        if no_ack or consumer in self._no_ack:
            return
        unacked = self._unacked
        unacked[tag] = None
        if len(unacked) > MOST_DELIVERIES:
            unacked.popitem(last=False)
            self.blurred_consumer_acks = True

    def consumer_settles(self, tag: int, multiple: bool, positive: bool) -> None:
        unacked = self._unacked
        if multiple:
            count = 0
            while unacked and (not tag or next(iter(unacked)) <= tag):
                unacked.popitem(last=False)
                count += 1
            if not self._from_open:
                # It may cover deliveries from before the capture too; from here on all are known.
                self.blurred_consumer_acks = True
                self._from_open = True
                count = max(count, 1)
        else:
            unacked.pop(tag, None)
            count = 1
        if positive:
            self.consumer_acks += count
        else:
            self.consumer_nacks += count

    # What is told.

    @property
    def exact(self) -> bool:
        """Whether every publish's tag is known."""
        return isinstance(self.tags, ExactTags)

    @property
    def blurred(self) -> bool:
        return self.tags.blurred or (self._earlier is not None and self._earlier.blurred)

    def latencies_into(self, latencies: Latencies) -> None:
        latencies.add_all(self._latencies)
        latencies.add_all(self.tags.latencies)
        if self._earlier is not None:
            latencies.add_all(self._earlier.latencies)

    def fact(self, now: float, whole: bool, up_to_date: bool) -> AmqpChannel:
        """`whole`: the capture has the connection from its first byte on; `up_to_date`: up to now, without a hole."""
        parts = [part for part in (self._earlier, self.tags) if part is not None]
        unconfirmed = None
        oldest_s = None
        if self.mode in (PLAIN, TX):
            unconfirmed = 0
        elif self.mode == CONFIRM:
            unconfirmed = sum(part.open + (part.forgotten if isinstance(part, ExactTags) else 0) for part in parts)
            oldest_s = min((sent for part in parts if (sent := part.oldest()) is not None), default=None)
        exact = (
            None if unconfirmed is None else self.mode != CONFIRM or (up_to_date and self.exact and not self.blurred)
        )
        return AmqpChannel(
            number=self.number,
            confirms=None if self.mode is None else self.mode == CONFIRM,
            transactional=None if self.mode is None else self.mode == TX,
            publishes=self.publishes,
            acks=self.acks,
            nacks=self.nacks,
            returns=self.returns,
            deliveries=self.deliveries,
            consumer_acks=self.consumer_acks,
            consumer_nacks=self.consumer_nacks,
            unconfirmed=unconfirmed,
            unconfirmed_exact=exact,
            oldest_unconfirmed_s=None if oldest_s is None else max(now - oldest_s, 0.0),
            consumers=tuple(self.consumers) if self.consumers or whole else None,
            closed=replace(self.closed, age_s=max(now - self.closed_s, 0.0)) if self.closed else None,
            closed_by=self.closed_by,
        )
