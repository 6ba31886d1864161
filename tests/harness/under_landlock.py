"""Runs a command in a Landlock domain: `under_landlock.py COMMAND...`.

A security module that refuses although every capability is there: from inside of a domain no process outside of it may
be looked at (the ptrace access check). Nothing else is restricted but the making of block devices, for a domain has to
restrict something.
"""

from __future__ import annotations

import ctypes
import os
import sys

CREATE_RULESET, RESTRICT_SELF = 444, 446
MAKE_BLOCK = 1 << 11
NO_NEW_PRIVS = 38

if __name__ == "__main__":
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.c_uint64(MAKE_BLOCK)
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    assert ruleset >= 0, os.strerror(ctypes.get_errno())
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    assert libc.syscall(RESTRICT_SELF, ruleset, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(ruleset)
    os.execvp(sys.argv[1], sys.argv[1:])
