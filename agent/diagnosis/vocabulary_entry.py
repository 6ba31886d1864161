"""The shape of one entry of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.diagnosis.purposes import Purpose


@dataclass(frozen=True)
class Entry:
    """Functions of some files that mean the same."""

    family: str
    """Frames of one family refine each other: a frame above may say better what the wait is for."""
    files: tuple[str, ...]
    """Tails of paths; a tail that ends with "/" is a package."""
    functions: frozenset[str]
    purpose: Purpose | None
    """None: transport, which every kind of wait passes through; the frame above it decides."""
    reason: str = ""
    """`{function}` is replaced by the frame's function."""
    weak: bool = False
    """A frame of the same family above it decides instead, if there is one."""
    leaf: bool = False
    """Counts only when nothing but transport lies inside it: an idle loop, not the callback that it runs."""
    relay: bool = False
    """Weak, and leaves to a frame of its family inside it what the wait is for, where there is one."""


def transport(family: str, files: str, functions: str) -> Entry:
    return Entry(family, tuple(files.split()), frozenset(functions.split()), None)


def strong(family: str, files: str, functions: str, purpose: Purpose, reason: str) -> Entry:
    return Entry(family, tuple(files.split()), frozenset(functions.split()), purpose, reason)


def weak(family: str, files: str, functions: str, purpose: Purpose, reason: str) -> Entry:
    return Entry(family, tuple(files.split()), frozenset(functions.split()), purpose, reason, weak=True)


def relay(family: str, files: str, functions: str, purpose: Purpose, reason: str) -> Entry:
    return Entry(family, tuple(files.split()), frozenset(functions.split()), purpose, reason, weak=True, relay=True)


def leaf(family: str, files: str, functions: str, purpose: Purpose, reason: str) -> Entry:
    return Entry(family, tuple(files.split()), frozenset(functions.split()), purpose, reason, leaf=True)
