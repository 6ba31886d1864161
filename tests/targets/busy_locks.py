"""Locks that change hands all the time, and a diary of who waited for which and who had it. No deadlock ever exists.

The first argument is the diary's path: for each thread its tid, how many entries it wrote, and a ring of them; an entry
is (CLOCK_MONOTONIC ns, what, lock). What: WAIT before a lock is acquired, GOT after that, RELEASED before it is released.
"""

import contextlib
import mmap
import os
import queue
import random
import struct
import sys
import threading
import time

WAIT, GOT, RELEASED, USES = range(1, 5)
"""USES: a queue is used from here to the thread's next entry; its mutex is taken somewhere in between."""
SLOW, FAST = 12, 4
THREADS = SLOW + FAST
ENTRY = struct.Struct("<QII")
ENTRIES = 1 << 17
HEADER = struct.Struct("<QQ")
HEADERS_BYTES = 4096
now = time.monotonic_ns


class Diary:
    """One thread's own."""

    def __init__(self, book: mmap.mmap, number: int) -> None:
        self.book, self.number, self.count = book, number, 0
        self.start = HEADERS_BYTES + number * ENTRIES * ENTRY.size
        self.tid = threading.get_native_id()

    def note(self, what: int, lock: int) -> None:
        ENTRY.pack_into(self.book, self.start + self.count % ENTRIES * ENTRY.size, now(), what, lock)
        self.count += 1
        HEADER.pack_into(self.book, self.number * HEADER.size, self.tid, self.count)


plain = [threading.Lock() for _ in range(2)]
recursive = [threading.RLock() for _ in range(2)]
turn = threading.Condition(threading.Lock())
items: queue.Queue = queue.Queue(4)
quick = [threading.Lock(), threading.RLock()]


def holds_a_lock(diary: Diary, hold) -> None:
    number = random.randrange(2)
    diary.note(WAIT, number)
    with plain[number]:
        diary.note(GOT, number)
        hold()
        diary.note(RELEASED, number)


def holds_a_lock_by_hand(diary: Diary, hold) -> None:
    diary.note(WAIT, 1)
    plain[1].acquire()
    diary.note(GOT, 1)
    hold()
    diary.note(RELEASED, 1)
    plain[1].release()


def holds_an_rlock(diary: Diary, hold) -> None:
    number = random.randrange(2)
    diary.note(WAIT, 2 + number)
    with recursive[number]:
        diary.note(GOT, 2 + number)
        with recursive[number]:
            hold()
        diary.note(RELEASED, 2 + number)


def holds_two(diary: Diary, hold) -> None:
    diary.note(WAIT, 0)
    with plain[0]:
        diary.note(GOT, 0)
        diary.note(WAIT, 3)
        with recursive[1]:
            diary.note(GOT, 3)
            hold()
            diary.note(RELEASED, 3)
        diary.note(RELEASED, 0)


def holds_a_condition(diary: Diary, hold) -> None:
    diary.note(WAIT, 4)
    with turn:
        diary.note(GOT, 4)
        hold()
        turn.notify()
        diary.note(RELEASED, 4)
        diary.note(WAIT, 4)
        turn.wait(random.random() / 10)
        diary.note(GOT, 4)
        hold()
        diary.note(RELEASED, 4)


def uses_a_queue(diary: Diary, hold) -> None:
    diary.note(USES, 5)
    with contextlib.suppress(queue.Full, queue.Empty):
        if random.random() < 0.5:
            items.put(1, timeout=0.05)
        else:
            items.get(timeout=0.05)
    diary.note(RELEASED, 5)


def slow(diary: Diary) -> None:
    def hold():
        time.sleep(0.02 + random.random() * 0.3)

    ways = (holds_a_lock, holds_a_lock_by_hand, holds_an_rlock, holds_two, holds_a_condition)
    while True:
        random.choice(ways)(diary, hold)
        uses_a_queue(diary, hold)


def fast(diary: Diary) -> None:
    while True:
        for number in (6, 7):
            diary.note(WAIT, number)
            with quick[number - 6]:
                diary.note(GOT, number)
                sum(range(200))
                diary.note(RELEASED, number)


def lives(number: int, book: mmap.mmap) -> None:
    try:
        (slow if number < SLOW else fast)(Diary(book, number))
    finally:
        # A thread that failed: nobody may take the rest for a healthy process.
        os._exit(3)


def main() -> None:
    from ready import say_ready

    size = HEADERS_BYTES + THREADS * ENTRIES * ENTRY.size
    with open(sys.argv[1], "w+b") as file:
        file.truncate(size)
        book = mmap.mmap(file.fileno(), size)
    for number in range(THREADS):
        threading.Thread(target=lives, args=(number, book), daemon=True).start()
    say_ready(str(os.getpid()))
    threading.Event().wait()


if __name__ == "__main__":
    main()
