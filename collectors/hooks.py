"""Objects whose programs sit on tracepoints: what the kernel takes of one is attached, and what it does not is said.

Found out by trying: all programs at once, for that is what most kernels take, else one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stucktrace.collectors import libbpf
from stucktrace.collectors.kernel import Kernel
from stucktrace.facts import Missing


class Hooks:
    """Loaded, then attached, until `close`. `programs`: program -> the tracepoint it sits on.

    BpfError when the kernel takes no program at all.
    """

    def __init__(self, kernel: Kernel, name: str, programs: Mapping[str, str], subject: str) -> None:
        self._kernel = kernel
        self._name = name
        self._programs = programs
        self._subject = subject
        self._links: dict[str, libbpf.Link] = {}
        self.loaded, self._taken = _load(kernel, name, programs)

    def attach(self) -> None:
        """The maps are filled by now: from here on the programs run."""
        for program in self._taken:
            try:
                self._links[program] = self.loaded.attach(program)
            except libbpf.BpfError:
                continue
        if self._links:
            self._kernel.hooks[self._name] = f"tp_btf/{','.join(self._programs[program] for program in self._links)}"

    @property
    def missing(self) -> tuple[Missing, ...]:
        """The hooks that this kernel does not have."""
        return tuple(
            Missing(f"{self._subject}: {tracepoint}", "this kernel has no such tracepoint", "a newer kernel")
            for program, tracepoint in self._programs.items()
            if program not in self._links
        )

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._kernel.unload(self._name)


class Window:
    """A sampling window over some processes; without a loaded object it is there but sees nothing."""

    def __init__(self, pids: Collection[int], kernel: Kernel | None, loaded: libbpf.Object | None) -> None:
        self.missing: tuple[Missing, ...] = ()
        self._pids = frozenset(pids)
        self._kernel = kernel
        self._object = loaded


def _load(kernel: Kernel, name: str, programs: Mapping[str, str]) -> tuple[libbpf.Object, tuple[str, ...]]:
    try:
        return kernel.load(name), tuple(programs)
    except libbpf.BpfError as error:
        taken = []
        for program in programs:
            try:
                kernel.load(name, frozenset({program}))
            except libbpf.BpfError:
                continue
            kernel.unload(name)
            taken.append(program)
        if not taken:
            raise error
        return kernel.load(name, frozenset(taken)), tuple(taken)
