"""The registrations in an epoll set's fdinfo."""

from __future__ import annotations

from stucktrace.collectors import epoll

NOW = """\
pos:\t0
flags:\t02000002
mnt_id:\t15
ino:\t1062
tfd:        7 events:     2019 data:                7  pos:0 ino:17e sdev:9
tfd:       12 events: 80000005 data: ffffffff0000000c  pos:0 ino:1f sdev:d
"""


def test_registrations():
    assert epoll.parse(NOW) == [(7, 0x2019, 0x17E), (12, 0x80000005, 0x1F)]


def test_before_the_kernel_named_inodes():
    assert epoll.parse("tfd:        7 events:       19 data:                7\n") == [(7, 0x19, 0)]


def test_nothing_registered():
    assert epoll.parse("pos:\t0\nflags:\t02000002\n") == []
    assert epoll.parse("") == []
