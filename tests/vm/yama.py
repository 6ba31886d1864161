"""Yama's restriction of ptrace, which the development kernel has not: .venv/bin/python -m tests.vm RELEASE -- .venv/bin/python -m tests.vm.yama

A debug container as the target's own user without capabilities sees all where kernel.yama.ptrace_scope is 0; at 1, which
is Ubuntu's usual one, it is told of the one that does; at 3 nobody sees it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.harness import command, elsewhere, kernel, targets

SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
OWN_USER = ("setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")  # fmt: skip
PTRACE = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+sys_ptrace,+dac_read_search", "--no-new-privs")
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
RIGHTS = "rights of this container"


def look(environment: dict[str, str], prefix: tuple[str, ...]) -> command.Report:
    options = ("--json", "--engine", "none", "--stuck-after", 3)
    done = elsewhere.run(environment, "pid", 1, *options, prefix=prefix)
    assert done.stdout, done.stderr
    return command.Report(json.loads(done.stdout))


def main() -> None:
    with (
        elsewhere.installed() as environment,
        targets.start("stuck_locks.py", "rlocks_crossed", prefix=(*CONTAINER, *OWN_USER)) as target,
    ):
        environment["KUBERNETES_SERVICE_HOST"] = "10.96.0.1"
        (first,) = kernel.wait_for_children(target.pid, 1)
        for tid in kernel.tids(first)[1:]:
            kernel.wait_for_call(first, "futex", tid=tid)
        beside = ("nsenter", "-t", str(first), "--pid", "--mount", "--net")
        for scope, route, wanted in (
            ("0", OWN_USER, "deadlock"),
            ("1", OWN_USER, "inconclusive"),
            ("1", PTRACE, "deadlock"),
            ("3", PTRACE, "inconclusive"),
        ):
            SCOPE.write_text(scope)
            report = look(environment, (*beside, *route))
            assert report.code == wanted, f"ptrace_scope {scope}: {report.text()}"
            missing = {one["what"]: one for one in report["seen"]["missing"]}
            if (scope, route) == ("1", OWN_USER):
                assert "kernel.yama.ptrace_scope is 1" in missing[RIGHTS]["because"], missing
                assert "--profile=sysadmin" in missing[RIGHTS]["remedy"], missing
                assert "runAsUser: 0" in missing[RIGHTS]["remedy"], missing
            else:
                assert RIGHTS not in missing, missing
            if scope == "3":
                assert "until the next boot" in missing["Python stacks"]["remedy"], missing
            print(
                f"ptrace_scope {scope}, {'root with SYS_PTRACE' if route is PTRACE else 'own user'}: {report.code}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
