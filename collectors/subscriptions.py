"""Which queues a consumer means to consume: Celery's by its command line and settings, kombu's by its Consumer objects.

The objects are found as variables of the frames that run them, and read from memory without stopping anything:
- celery.worker.consumer.Consumer: `task_consumer`, `qos`, `initial_prefetch_count`, `task_buckets` (5.2 to 5.7);
- kombu.messaging.Consumer: `_queues` (what it was made for) and `_active_tags` (what it has a consumer tag for now);
- kombu's virtual QoS, which Redis has: `prefetch_count`, `_delivered`, `_dirty`.
`celery control cancel_consumer` takes a queue out of both dicts, so what the worker was started for is taken from its
-Q, and else from what Celery's command `worker` was given (`kwargs` in celery/bin/worker.py: by CELERY_WORKER_QUEUES or
`worker_main` too) and its application's settings. A worker that was started in another way may have been told its
queues by anybody, and is believed to be there for what it consumes. Everything is read twice and has to agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stucktrace.collectors import command_line, memory, python_frames
from stucktrace.collectors.celery_apps import Finder
from stucktrace.collectors.celery_target import Target, open_target
from stucktrace.collectors.command_line import CELERY_WORKER
from stucktrace.collectors.python_classes import Objects
from stucktrace.collectors.python_containers import Containers
from stucktrace.facts import ProcessFact
from stucktrace.facts.broker import Subscription

WHAT = "the consumer's queues"
CELERY, KOMBU = "Celery's task consumer", "a kombu Consumer"
BY_OPTION, BY_COMMAND, BY_SETTING, BY_DEFAULT, BY_OBJECT = (
    "-Q on its command line",
    "what its command `worker` was given",
    "the setting task_queues",
    "the setting task_default_queue",
    "its Consumer object",
)
_DEADLINE_S = 0.1
_MOST_QUEUES = 256
_LONGEST_NAME = 255
_COMMAND, _COMMAND_FILE, _GIVEN = "worker", "/celery/bin/worker.py", "kwargs"
_LONGEST_PATH = 4096
_SETTINGS = ("task_queues", "CELERY_QUEUES", "task_default_queue", "CELERY_DEFAULT_QUEUE")


@dataclass(frozen=True)
class _Found:
    """What the memory has of Celery's consumer."""

    active: tuple[str, ...] | None = None
    made_for: tuple[str, ...] = ()
    prefetch: int | None = None
    initial_prefetch: int | None = None
    held: int | None = None
    rate_limited: bool | None = None


def collect(process: ProcessFact) -> tuple[Subscription, ...]:
    """() for a process that consumes nothing that is known. Raises CollectorError."""
    stated = _stated(process)
    if not process.is_python:
        return stated
    with memory.reading(WHAT):
        target = open_target(process.pid)
        if target is None:
            return stated
        first = _read(target, process, stated)
        for _ in range(2):
            again = _read(target, process, stated)
            if first == again:
                return first
            first = again
    return stated


def _stated(process: ProcessFact) -> tuple[Subscription, ...]:
    """By a Celery worker's command line."""
    if process.worker.kind != "celery-main":
        return ()
    line = command_line.read(process.argv)
    given = command_line.option(line.arguments, "-Q", "--queues") if line.program == CELERY_WORKER else None
    queues = tuple(name for word in (given or "").split(",") if (name := word.strip()))
    return (Subscription(CELERY, queues, BY_OPTION),) if queues else ()


def _read(target: Target, process: ProcessFact, stated: tuple[Subscription, ...]) -> tuple[Subscription, ...]:
    """One reading. Raises OSError, struct.error."""
    reading = _Reading(target)
    celery, others = None, []
    for address in reading.consumers():
        found = reading.values.attributes(address, ("task_consumer", "_queues", "_active_tags"))
        if "task_consumer" in found and celery is None:
            celery = reading.celery(address, found["task_consumer"])
        elif "_queues" in found and "_active_tags" in found:
            others.append(reading.kombu(found))
    if process.worker.kind != "celery-main":
        return tuple(dict.fromkeys(others))
    if celery is None:
        return stated
    base = stated[0] if stated else reading.configured(process, celery.made_for)
    return (
        replace(
            base,
            active=celery.active,
            prefetch=celery.prefetch,
            initial_prefetch=celery.initial_prefetch,
            held=celery.held,
            rate_limited=celery.rate_limited,
        ),
    )


class _Reading:
    def __init__(self, target: Target) -> None:
        self._target = target
        self.values = target.values
        self._objects = Objects(target.reader, target.values)
        self._containers = Containers(target.reader.pid, target.values, target.minor)
        self._given: dict[str, int] | None = None

    def consumers(self) -> Iterator[int]:
        """The objects in variables of any frame, or in a list there, whose class is some Consumer. It meets Celery's
        command on its way, and keeps what that was given."""
        walk = python_frames.walk(self._target.reader, self._target.found, _DEADLINE_S)
        if walk is None:
            return
        kinds: dict[int, bool] = {}
        seen: set[int] = set()
        for state in walk.states():
            for frame in walk.frames(state):
                self._given = self._given if self._given is not None else self._command(walk, frame)
                slots = walk.slots(frame)
                held = [each for each in walk.objects(slots.start, len(slots)) if each and each % 8 == 0]
                lists = [each for each, kind in zip(held, self.values.types(held), strict=True) if kind == "list"]
                held += [item for each in lists for item in (self._containers.items(each) or ())[:_MOST_QUEUES]]
                for address in held:
                    if address not in seen and self._is_consumer(address, kinds):
                        yield address
                    seen.add(address)

    def _command(self, walk: python_frames.Walk, frame: python_frames.Frame) -> dict[str, int] | None:
        """The options of Celery's command `worker`, if this is its frame."""
        code = walk.code(frame.code)
        if code is None or not code.function or self.values.text(code.function, _LONGEST_NAME) != _COMMAND:
            return None
        if not (self.values.text(code.file, _LONGEST_PATH) or "").endswith(_COMMAND_FILE):
            return None
        names = [self.values.text(name, _LONGEST_NAME) for name in self.values.items(code.names[0]) or ()]
        slots = walk.slots(frame)
        if _GIVEN not in names or names.index(_GIVEN) >= len(slots):
            return None
        (options,) = walk.objects(slots[names.index(_GIVEN)], 1)
        found = self.values.entries(options, ("queues", "exclude_queues")) if options else None
        return found if found is not None and len(found) == 2 else None

    def _is_consumer(self, address: int, kinds: dict[int, bool]) -> bool:
        (kind,) = memory.read_words(self._target.reader.pid, [address + 8])
        if not kind:
            return False
        if kind not in kinds:
            named = bool(self._target.reader.type_name(kind))
            kinds[kind] = named and "Consumer" in self._objects.base_names(kind)
        return kinds[kind]

    def kombu(self, found: dict[str, int]) -> Subscription:
        return Subscription(KOMBU, self._names(found["_queues"]) or (), BY_OBJECT, self._names(found["_active_tags"]))

    def celery(self, address: int, task_consumer: int) -> _Found:
        inner = self.values.attributes(task_consumer, ("_queues", "_active_tags", "channel"))
        own = self.values.attributes(address, ("qos", "initial_prefetch_count", "task_buckets"))
        value = self.values.attribute(own["qos"], "value") if "qos" in own else None
        return _Found(
            self._names(inner["_active_tags"]) if "_active_tags" in inner else None,
            (self._names(inner["_queues"]) if "_queues" in inner else None) or (),
            self._integer(value),
            self._integer(own.get("initial_prefetch_count")),
            self._held(inner.get("channel")),
            self._any_bucket(own.get("task_buckets")),
        )

    def _held(self, channel: int | None) -> int | None:
        """By a virtual transport's channel: `_delivered` without what is `_dirty`."""
        qos = self.values.attribute(channel, "_qos") if channel else None
        if not qos or self.values.type(qos) == "NoneType":
            return None
        found = self.values.attributes(qos, ("_delivered", "_dirty", "can_consume"))
        if "can_consume" in found:
            # worker_disable_prefetch: Celery asks its own tasks instead.
            return None
        delivered = self.values.pairs(found["_delivered"]) if "_delivered" in found else None
        dirty = self._containers.items(found["_dirty"]) if "_dirty" in found else None
        return None if delivered is None or dirty is None else len(delivered) - len(dirty)

    def _any_bucket(self, buckets: int | None) -> bool | None:
        pairs = self.values.pairs(buckets) if buckets else None
        if pairs is None:
            return None
        return any(kind not in ("NoneType", "") for kind in self.values.types([value for _, value in pairs]))

    def _integer(self, address: int | None) -> int | None:
        return self.values.integer(address) if address else None

    def _names(self, address: int) -> tuple[str, ...] | None:
        """The keys of a dict of queues."""
        pairs = self.values.pairs(address)
        if pairs is None or len(pairs) > _MOST_QUEUES:
            return None
        names = [self.values.text(key, _LONGEST_NAME) for key, _ in pairs]
        return None if None in names else tuple(sorted(name for name in names if name))

    def configured(self, process: ProcessFact, made_for: tuple[str, ...]) -> Subscription:
        """Where its command line names no queues."""
        own = Subscription(CELERY, made_for, BY_OBJECT)
        if self._given is None:
            return own
        given, left_out = (self._texts(self._given[name]) for name in ("queues", "exclude_queues"))
        if given is None or left_out is None:
            return own
        if given:
            queues, source = given, BY_COMMAND
        else:
            queues, source = self._by_settings()
        line = command_line.read(process.argv)
        left_out += tuple((command_line.option(line.arguments, "-X", "--exclude-queues") or "").split(","))
        return Subscription(CELERY, tuple(name for name in queues if name not in left_out), source) if queues else own

    def _by_settings(self) -> tuple[tuple[str, ...], str]:
        finder = Finder(self._target.reader, self._target.values, self._target.modules, self._target.minor)
        apps = finder.apps(_SETTINGS)
        by_name: dict[str, int] = {}
        for layer in apps[0].layers if apps else ():
            for name, address in layer.values.items():
                by_name.setdefault(name.lower().removeprefix("celery_").removeprefix("task_"), address)
        queues = self._queues(by_name.get("queues", 0))
        if queues:
            return queues, BY_SETTING
        default = self.values.text(by_name.get("default_queue", 0), _LONGEST_NAME)
        return ((default,) if default else ()), BY_DEFAULT

    def _texts(self, address: int) -> tuple[str, ...] | None:
        """Names as Celery takes them: a list, or one text with commas; () for none."""
        if self.values.type(address) == "NoneType":
            return ()
        text = self.values.text(address, _MOST_QUEUES * _LONGEST_NAME)
        if text is not None:
            return tuple(name for word in text.split(",") if (name := word.strip()))
        items = self._containers.items(address)
        names = [self.values.text(item, _LONGEST_NAME) for item in (items or ())[:_MOST_QUEUES]]
        return None if items is None or None in names else tuple(filter(None, names))

    def _queues(self, address: int) -> tuple[str, ...]:
        """The names in a list, tuple or dict of kombu's Queue objects."""
        if not address:
            return ()
        by_name = self.values.pairs(address)
        if by_name is not None:
            return tuple(name for key, _ in by_name if (name := self.values.text(key, _LONGEST_NAME)))
        items = (self._containers.items(address) or ())[:_MOST_QUEUES]
        names = [self.values.attribute(item, "name") for item in items]
        return tuple(text for name in names if name and (text := self.values.text(name, _LONGEST_NAME)))
