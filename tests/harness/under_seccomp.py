"""Runs a command behind the seccomp filter that an OCI profile describes: `under_seccomp.py PROFILE COMMAND...`.

As a container's runtime does it: libseccomp makes the filter, no_new_privs is set, and the command is executed. Names
that this machine's architecture does not have are left out, as runtimes do.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

ERRNO, ALLOW = 0x00050000, 0x7FFF0000
ARCHITECTURES = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_AARCH64": 0xC00000B7}
COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
EEXIST = 17


class Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def load(profile: dict) -> None:
    """For this process and what it executes, for ever."""
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(ERRNO | profile["defaultErrnoRet"])))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO" and context
    for name in profile["architectures"]:
        status = lib.seccomp_arch_add(context, ctypes.c_uint32(ARCHITECTURES[name]))
        assert status in (0, -EEXIST), f"{name}: {status}"
    for rule in profile["syscalls"]:
        action = {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": ERRNO | rule.get("errnoRet", 1)}[rule["action"]]
        compared = [
            Comparison(
                one["index"],
                COMPARISONS[one["op"]],
                one["value"],
                one.get("valueTwo", 0),
            )
            for one in rule.get("args", ())
        ]
        for name in rule["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            assert number != -1, f"libseccomp does not know {name}"
            array = (Comparison * len(compared))(*compared)
            status = lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(compared), array)
            assert status == 0, f"{name}: {status}"
    status = lib.seccomp_load(context)
    assert status == 0, f"load: {status}"


if __name__ == "__main__":
    path, *command = sys.argv[1:]
    with open(path) as file:
        load(json.load(file))
    os.execvp(command[0], command)
