"""Whether gevent or eventlet replaced the standard library's sockets in a process: it serves with greenlets then,
whatever the class of its worker is called.

Source: gevent keeps what it replaced in the dict `saved` of gevent.monkey, by module; eventlet notes which modules it
replaced in `already_patched` of eventlet.patcher.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from stucktrace.collectors import celery_target

_NOTES = (("gevent", "gevent.monkey", "saved"), ("eventlet", "eventlet.patcher", "already_patched"))


def by(pid: int, libraries: Sequence[str]) -> str:
    """ "gevent", "eventlet"; "" for neither, or if it cannot be read. `libraries`: base names of what is mapped."""
    if not any(name.startswith("_greenlet.") for name in libraries):
        return ""
    try:
        target = celery_target.open_target(pid)
        if target is None:
            return ""
        for name, module, attribute in _NOTES:
            imported = target.modules.module(module)
            note = target.values.attribute(imported, attribute) if imported else None
            if note and target.values.entries(note, {"socket"}):
                return name
    except (OSError, struct.error):
        pass
    return ""
