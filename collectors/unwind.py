"""The native call stack of a thread that is asleep: return addresses, innermost first, without stopping anything.

From the registers that the kernel saved when the thread entered its system call, frame by frame, with the unwind tables
of the mapped files (cfi.py) and the thread's own stack. A thread that sleeps does not move its stack; whether it slept
all the while is for the caller to check. Where a table is missing or makes no sense the walk ends and says so: frame
pointers are not guessed at.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import cfi, elf, memory
from stucktrace.collectors.dwarf_bytes import Malformed
from stucktrace.collectors.dwarf_expressions import evaluate
from stucktrace.collectors.regions import Regions
from stucktrace.facts.native import NO_TABLE

MAX_FRAMES = 512
_BLOCK_BYTES = 1 << 14
_WORD = (1 << 64) - 1
_CANONICAL = (1 << 48) - 1


@dataclass(frozen=True)
class Machine:
    """The numbers that DWARF gives to an architecture's registers."""

    stack_pointer: int
    preserved: frozenset[int]
    """Callee-saved: where a row says nothing of them, they are unchanged."""
    saved: tuple[int, ...]
    """The DWARF number of each word of the kernel's pt_regs; -1: not one that is needed."""
    program_counter: int
    """Which of these words is the program counter."""


MACHINES = {
    62: Machine(  # x86-64; psABI, figure 3.36; pt_regs from arch/x86/include/asm/ptrace.h
        7,
        frozenset({3, 6, 12, 13, 14, 15}),
        (15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, -1, -1, -1, -1, 7, -1),
        16,
    ),
    183: Machine(31, frozenset(range(19, 30)), (*range(32), -1, -1), 32),  # arm64; AADWARF64
}
"""By e_machine."""


@dataclass(frozen=True)
class Frame:
    address: int
    """The instruction: where it goes on, of the innermost frame and of one that a signal interrupted; else in the
    call."""
    module: elf.Module | None


@dataclass(frozen=True)
class Stack:
    frames: tuple[Frame, ...]
    ended: str = ""
    """Why it may have outer frames that could not be found; "" for a whole stack."""


class Unwinder:
    """Unwinds threads of one process. What was read of it is kept, so one is made for each look."""

    def __init__(self, pid: int, mapped: Regions, ends: float) -> None:
        self.pid = pid
        self.mapped = mapped
        self.ends = ends
        """CLOCK_MONOTONIC."""
        self._blocks: dict[int, bytes] = {}
        self._modules: dict[int, elf.Module | None] = {}
        self._tables: dict[int, cfi.Table | None] = {}
        self._functions: dict[int, cfi.Function | None] = {}

    def read(self, address: int, length: int) -> bytes:
        """Exactly `length` bytes, in blocks that are read once. Raises OSError."""
        if length > _BLOCK_BYTES:
            return memory.read(self.pid, address, length)
        data, place = b"", address
        while place < address + length:
            start = place & -_BLOCK_BYTES
            if start not in self._blocks:
                self._blocks[start] = self._block(start)
            offset = place - start
            part = self._blocks[start][offset : offset + address + length - place]
            if not part:
                return memory.read(self.pid, address, length)
            data += part
            place += len(part)
        return data

    def forget(self) -> None:
        """What was read of the memory, which a thread that ran has changed; the files and their tables stay."""
        self._blocks.clear()

    def _block(self, start: int) -> bytes:
        try:
            return memory.read_some(self.pid, start, _BLOCK_BYTES)
        except (ProcessLookupError, PermissionError):
            raise
        except OSError:
            # Its beginning is not mapped, but its end may be.
            return b""

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address & _WORD, 8), "little")

    def module(self, address: int) -> elf.Module | None:
        """The file mapped at an address. Raises OSError."""
        region = self.mapped.find(address)
        if region is None:
            return None
        if region.start not in self._modules:
            self._modules[region.start] = elf.module_at(self.pid, self.mapped, address)
        return self._modules[region.start]

    def _function(self, address: int) -> cfi.Function | None:
        if address not in self._functions:
            module = self.module(address)
            if module is not None and module.start not in self._tables:
                try:
                    self._tables[module.start] = cfi.Table(module, self.read)
                except Malformed:
                    self._tables[module.start] = None
            table = self._tables[module.start] if module is not None else None
            self._functions[address] = table.find(address) if table is not None else None
        return self._functions[address]

    def unwind(self, machine: Machine, registers: Mapping[int, int], counter: int) -> Stack:
        """`registers`: by DWARF number, as far as they are known."""
        frames: list[Frame] = []
        known, interrupted = dict(registers), True
        while len(frames) < MAX_FRAMES:
            if time.monotonic() > self.ends:
                return Stack(tuple(frames), "no time was left")
            address = counter if interrupted else counter - 1
            try:
                region = self.mapped.find(address)
                if region is None or "x" not in region.permissions:
                    return Stack(tuple(frames), "a return address lies in no code")
                frames.append(Frame(address, self.module(address)))
                function = self._function(address)
                if function is None:
                    return Stack(tuple(frames), f"{NO_TABLE} for {region.path or 'generated code'}")
                stepped = self._step(machine, function, known)
            except (Malformed, OSError, KeyError, struct.error) as error:
                return Stack(tuple(frames), _why(error))
            if stepped is None:
                return Stack(tuple(frames))
            before, interrupted = known[machine.stack_pointer], function.signal_frame
            known, counter = stepped
            # A signal's handler may run on a stack of its own; else each caller's stack lies above.
            if known[machine.stack_pointer] <= before and not interrupted:
                leaf = len(frames) == 1 and known[machine.stack_pointer] == before and counter != address
                if not leaf:
                    return Stack(tuple(frames), "the stack pointer goes back")
        return Stack(tuple(frames), f"more than {MAX_FRAMES} frames")

    def _step(
        self, machine: Machine, function: cfi.Function, known: Mapping[int, int]
    ) -> tuple[dict[int, int], int] | None:
        """The caller's registers and its program counter; None at the outermost frame. Raises KeyError for a register
        that is not known."""
        row = function.row
        if row.rules.get(function.return_register, cfi.Rule("same")).kind == "undefined":
            return None
        cfa = evaluate(row.expression, known, self.word) if row.expression else known[row.register] + row.offset
        caller = {number: known[number] for number in machine.preserved if number in known}
        for number, rule in row.rules.items():
            if number < 0 or number > 64:
                continue
            value = self._value(rule, cfa & _WORD, known, number)
            if value is None:
                caller.pop(number, None)
            else:
                caller[number] = value & _WORD
        if function.return_register in caller:
            counter = caller.pop(function.return_register)
        else:
            counter = known[function.return_register]
        if row.signed:
            counter &= _CANONICAL
        if machine.stack_pointer not in row.rules:
            caller[machine.stack_pointer] = cfa & _WORD
        return (caller, counter) if counter else None

    def _value(self, rule: cfi.Rule, cfa: int, known: Mapping[int, int], number: int) -> int | None:
        if rule.kind == "offset":
            return self.word(cfa + rule.number)
        if rule.kind == "value":
            return cfa + rule.number
        if rule.kind == "register":
            return known.get(rule.number)
        if rule.kind == "expression":
            return self.word(evaluate(rule.expression, known, self.word, cfa))
        if rule.kind == "value expression":
            return evaluate(rule.expression, known, self.word, cfa)
        return known.get(number) if rule.kind == "same" else None


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return "a register that its table needs is not known"
    if isinstance(error, Malformed):
        return f"its unwind table makes no sense ({error})"
    return "its memory could not be read"
