"""Every error that a user can meet, with its remedy and its exit status.

StucktraceError
├── UsageError          2  the request makes no sense
│   └── InvalidSettings    a file, variable or option of the agent has a wrong value
├── JournalError        3  a file is no journal, or cannot be read or written
├── Refused             3  unstick does not touch it: not proven, shared, or not agreed to
└── CannotInspect       3  the target cannot be looked at
    ├── NoSuchProcess      it is gone, or never was
    ├── KernelThread       it has no user space
    └── NotPermitted       a capability or mount is missing
CollectorError          (inside) one source of facts failed; becomes a `Missing` and the rest goes on
"""

from __future__ import annotations

from stucktrace.facts import Missing


class StucktraceError(Exception):
    """`message` says what is wrong in one line, `remedy` what would help."""

    exit_status = 3

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(StucktraceError):
    exit_status = 2


class JournalError(StucktraceError):
    pass


class InvalidSettings(UsageError):
    """`problems` has one line for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


class Refused(StucktraceError):
    pass


class CannotInspect(StucktraceError):
    pass


class NoSuchProcess(CannotInspect):
    pass


class KernelThread(CannotInspect):
    pass


class NotPermitted(CannotInspect):
    pass


class CollectorError(Exception):
    """One collector could not see its facts. Never reaches a user as an error: `missing` goes into the report."""

    def __init__(self, what: str, because: str, remedy: str) -> None:
        super().__init__(f"{what}: {because}")
        self.missing = Missing(what, because, remedy)
