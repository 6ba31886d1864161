"""Compiles one BPF object with iovisor's bcc, hands its file descriptors over, and ends: a process for bcc.py.

It runs in whichever Python bcc is installed for (3.6 or newer), so nothing of ours is imported. Its stdin is the job,
one JSON object: text, cflags, hooks (the functions to load), maps. Its answer goes through the socket whose descriptor
is its argument: JSON with the reason of each refusal, and by SCM_RIGHTS the descriptors of the programs and maps.
"""

import array
import json
import signal
import socket
import sys
import time
from typing import Any

DEADLINE_S = 600
"""When whoever started it is gone and cannot end it."""


def main() -> None:
    signal.alarm(DEADLINE_S)
    # Where memory is short, this is what may go.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    job = json.load(sys.stdin)
    answers = socket.socket(fileno=int(sys.argv[1]))
    try:
        from bcc import BPF  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        _answer(answers, {"absent": True}, [])
        return
    try:
        module = BPF(text=job["text"], cflags=job["cflags"])
    except Exception as error:
        _answer(answers, {"refused": str(error)}, [])
        return
    programs, refusals = {}, {}
    for name in job["hooks"]:
        try:
            programs[name] = module.load_func(name, BPF.RAW_TRACEPOINT).fd
        except Exception as error:
            refusals[name] = str(error)
    # Some are declared for the other compiler alone.
    maps = {name: module[name].map_fd for name in job["maps"] if _has(module, name)}
    fds = list(programs.values()) + list(maps.values())
    _answer(answers, {"programs": list(programs), "maps": list(maps), "refusals": refusals}, fds)


def _has(module: Any, name: str) -> bool:
    try:
        return module[name] is not None
    except KeyError:
        return False


def _answer(answers: socket.socket, answer: "dict[str, object]", fds: "list[int]") -> None:
    answer["cpu_s"] = time.process_time()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    answers.sendmsg([json.dumps(answer).encode()], rights)


if __name__ == "__main__":
    main()
