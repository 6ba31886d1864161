"""/proc/locks: who holds, who waits."""

from __future__ import annotations

from stucktrace.collectors.file_locks import Entry, parse

LOCKS = """\
1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF
2: FLOCK  ADVISORY  WRITE 3517 fd:00:2531448 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4711 fd:00:2531448 0 EOF
3: OFDLCK ADVISORY  READ -1 00:2e:77 128 128
4: POSIX  MANDATORY READ  12 08:01:99 0 10
5: LEASE  ACTIVE    READ  4240 fd:00:2531477 0 EOF
6: LEASE  BREAKING  READ  4240 <none> 0 EOF
"""


def test_lines():
    assert parse(LOCKS) == [
        Entry(1, False, "POSIX", 3568, "fd:00:2531452"),
        Entry(2, False, "FLOCK", 3517, "fd:00:2531448"),
        Entry(2, True, "FLOCK", 4711, "fd:00:2531448"),
        Entry(3, False, "OFDLCK", -1, "00:2e:77"),
        Entry(4, False, "POSIX", 12, "08:01:99"),
        Entry(5, False, "LEASE", 4240, "fd:00:2531477"),
        Entry(6, False, "LEASE", 4240, ""),
    ]
    assert parse("") == []
    assert parse("no lock at all\n") == []
