"""Objects whose programs sit on tracepoints: what the kernel takes of one is attached, and what it does not is said.

Each hook is there in the forms of bpf/hook.h, and the first one that the kernel takes is used. Found out by trying: all
hooks in the first form at once, for that is what most kernels take, else one by one.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from contextlib import suppress

from stucktrace.collectors import libbpf
from stucktrace.collectors.bpf_streams import Stream, open_stream
from stucktrace.collectors.kernel import Kernel
from stucktrace.facts import Missing

FORMS: Mapping[str, str] = {"tp_btf": "", "raw_tp": "_raw"}
"""Means -> what its program's name ends with (bpf/hook.h); the best one first."""
FORMS_OF_BCC: Mapping[str, str] = {"raw_tp": ""}


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
        self._refused: dict[str, libbpf.BpfError] = {}
        self._stream: Stream | None = None
        self._forms = FORMS_OF_BCC if kernel.engine == "bcc" else FORMS
        self.loaded, self._means = _load(kernel, name, programs, self._forms)

    def stream(self) -> Stream:
        """What the programs send, until `close`. BpfError: it cannot be read, and nothing stays loaded."""
        try:
            self._stream = open_stream(self.loaded.map("ring"))
        except libbpf.BpfError:
            self.close()
            raise
        return self._stream

    def attach(self) -> None:
        """The maps are filled by now: from here on the programs run. BpfError when none of them does."""
        for program, means in self._means.items():
            try:
                self._links[program] = self.loaded.attach(program + self._forms[means])
            except libbpf.BpfError as error:
                self._refused[program] = error
        if not self._links:
            self.close()
            raise next(iter(self._refused.values()))
        self._kernel.hooks[self._name] = self.means + (" (perf buffer)" if self.loaded.streams_by_perf else "")

    @property
    def means(self) -> str:
        """What is attached, as `tp_btf/one,another raw_tp/third`."""
        by_means = {
            means: ",".join(self._programs[program] for program in self._links if self._means[program] == means)
            for means in self._forms
        }
        return " ".join(f"{means}/{tracepoints}" for means, tracepoints in by_means.items() if tracepoints)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """The hooks that this kernel does not have."""
        return tuple(
            Missing(f"{self._subject}: {tracepoint}", _because(self._refused.get(program)), "a newer kernel")
            for program, tracepoint in self._programs.items()
            if program not in self._links
        )

    def close(self) -> None:
        if self._stream:
            self._stream.close()
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


def _because(error: libbpf.BpfError | None) -> str:
    if error is None or error.errno in (errno.ENOENT, errno.ESRCH):
        return "this kernel has no such tracepoint"
    return str(error)


def _load(
    kernel: Kernel, name: str, programs: Mapping[str, str], forms: Mapping[str, str]
) -> tuple[libbpf.Object, dict[str, str]]:
    """The object, and the means for each program that the kernel takes."""
    first = next(iter(forms))
    try:
        return kernel.load(name, frozenset(program + forms[first] for program in programs)), dict.fromkeys(
            programs, first
        )
    except libbpf.BpfError as error:
        # What bcc takes of an object it took at once.
        if len(forms) == 1:
            raise
        means: dict[str, str] = {}
        for program in programs:
            for form, suffix in forms.items():
                with suppress(libbpf.BpfError):
                    kernel.load(name, frozenset({program + suffix}))
                    kernel.unload(name)
                    means[program] = form
                    break
        if not means:
            raise error
        return kernel.load(name, frozenset(program + forms[form] for program, form in means.items())), means
