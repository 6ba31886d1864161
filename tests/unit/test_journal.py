"""Journals: whole records of a torn file, one clear line for a foreign one, and a directory that stays small."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from stucktrace.errors import JournalError
from stucktrace.sinks import journal

RECORDS = [{"record": "header", "n": 1}, {"record": "note", "text": "\udcff"}, {"record": "x", "u64": 2**64 - 1}]
PAYLOADS = [journal.pack(record) for record in RECORDS]
DAY_S = 86_400


def read(path: Path) -> tuple[list[Any], list[str]]:
    """The records, and what was said to be missing."""
    torn: list[str] = []
    return list(journal.read(path, torn.append)), torn


def error_of(path: Path) -> str:
    with pytest.raises(JournalError) as raised:
        read(path)
    assert raised.value.exit_status == 3 and "\n" not in raised.value.message
    return raised.value.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "a.journal"
    assert journal.write(found, PAYLOADS) == 0
    return found


def test_what_is_written_is_read(path: Path):
    assert read(path) == (RECORDS, [])
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_torn_at_every_byte(path: Path):
    whole = path.read_bytes()
    head = len(whole) - sum(8 + len(payload) for payload in PAYLOADS)
    ends = [head + sum(8 + len(payload) for payload in PAYLOADS[:count]) for count in range(len(PAYLOADS) + 1)]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < head:
            assert "not a stucktrace journal" in error_of(path)
            continue
        count = sum(end <= length for end in ends) - 1
        records, torn = read(path)
        assert records == RECORDS[:count]
        if length == ends[count]:
            assert torn == []
        else:
            (line,) = torn
            assert f"{count} whole records" in line and f"the last {length - ends[count]} bytes" in line


def test_every_flipped_bit(path: Path):
    whole = path.read_bytes()
    for index in range(12, len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[index] ^= 1 << bit
            path.write_bytes(flipped)
            records, torn = read(path)
            assert records == RECORDS[: len(records)] and len(records) < len(RECORDS) and len(torn) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"#!/bin/sh\n", b"STUCKJN", b"STUCKJNL\1\0", b"\x7fELF" * 99])
def test_a_foreign_file(path: Path, content: bytes):
    path.write_bytes(content)
    assert "not a stucktrace journal" in error_of(path)


def test_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    assert "not a file" in error_of(tmp_path / "fifo")
    assert "not a file" in error_of(tmp_path)
    assert "No such file" in error_of(tmp_path / "nothing")


def test_a_newer_format(path: Path):
    path.write_bytes(journal.MAGIC + struct.pack("<I", 2) + path.read_bytes()[12:])
    assert "format 2" in error_of(path)


@pytest.mark.parametrize("length", [0xFFFFFFFF, journal.LONGEST_RECORD_BYTES + 1, 1000])
def test_a_length_beyond_the_file(path: Path, length: int):
    with path.open("ab") as file:
        file.write(struct.pack("<II", length, 0) + b"abc")
    records, torn = read(path)
    assert records == RECORDS and "the last 11 bytes" in torn[0]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xdd\x00\x0f\xff\xff" * 500,
        msgpack.packb([1]),
        msgpack.packb(7),
        b"\xc1",
        b"",
        msgpack.packb({"a": 1}) + b"\0",
        b"\x81\xa1\xff\x01",
    ],
)
def test_records_that_are_none(path: Path, payload: bytes):
    """The checksum is right, what it covers is not: no memory is taken for what only claims to be there."""
    with path.open("ab") as file:
        file.write(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    records, torn = read(path)
    assert records == RECORDS and "record 3 cannot be read" in torn[0]


def test_a_huge_file(path: Path):
    os.truncate(path, journal.LONGEST_FILE_BYTES + 1)
    assert "too many" in error_of(path)


def test_what_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal, "LONGEST_RECORD_BYTES", 100)
    assert journal.write(tmp_path / "a", [PAYLOADS[0], b"x" * 101, PAYLOADS[1]]) == 1
    assert read(tmp_path / "a") == (RECORDS[:2], [])


def test_it_grows(path: Path):
    whole = path.read_bytes()
    journal.write(path, PAYLOADS[:1], before=path)
    assert read(path) == ([*RECORDS, RECORDS[0]], [])
    path.write_bytes(whole[:-1])
    journal.write(path, PAYLOADS[:1], before=path)
    assert read(path) == ([*RECORDS[:2], RECORDS[0]], [])


def test_a_failed_write_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk, as it shows: the sync fails."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.write(path, PAYLOADS[:1])
    assert read(path) == (RECORDS, []) and os.listdir(path.parent) == [path.name]


def kept(directory: Path, age_s: float, code: str = "half-open") -> Path:
    """A journal in a directory, written so long ago."""
    found = directory / journal.name(1_700_000_000 - age_s, code, f"{int(age_s):08x}ffff")
    journal.write(found, PAYLOADS)
    os.utime(found, (found.stat().st_mtime - age_s,) * 2)
    return found


def test_the_oldest_go_first(tmp_path: Path):
    a, b, c = (kept(tmp_path, age_s) for age_s in (300, 200, 100))
    journal.prune(tmp_path, 2 * a.stat().st_size, DAY_S)
    assert sorted(tmp_path.iterdir()) == sorted([b, c])
    journal.prune(tmp_path, 1 << 30, 150)
    assert list(tmp_path.iterdir()) == [c]
    journal.prune(tmp_path, 0, DAY_S)
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_are_removed(tmp_path: Path):
    ours = kept(tmp_path, 3 * DAY_S)
    foreign = kept(tmp_path, 4 * DAY_S)
    foreign.write_bytes(b"something else")
    named = tmp_path / "incident.journal"
    journal.write(named, PAYLOADS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / journal.name(1.0, "deadlock", "a" * 8)).symlink_to(kept(elsewhere, 5 * DAY_S))
    (tmp_path / journal.name(2.0, "deadlock", "b" * 8)).mkdir()
    os.mkfifo(tmp_path / journal.name(3.0, "deadlock", "c" * 8))
    before = set(tmp_path.rglob("*"))
    journal.prune(tmp_path, 0, 0)
    assert set(tmp_path.rglob("*")) == before - {ours}


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path):
    name = journal.name(1.0, "deadlock", "a" * 8)
    left, other = tmp_path / f".{name}.17.tmp", tmp_path / ".vimrc.17.tmp"
    for path in (left, other):
        path.write_bytes(journal.MAGIC)

    def payloads():
        yield PAYLOADS[0]
        journal.prune(tmp_path, 1 << 30, DAY_S)
        assert {path.name for path in tmp_path.iterdir()} == {f".{name}.{os.getpid()}.tmp", other.name}
        yield PAYLOADS[1]

    journal.write(tmp_path / name, payloads())
    assert {path.name for path in tmp_path.iterdir()} == {name, other.name}
