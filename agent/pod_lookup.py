"""The names of pods for one command: nobody is asked unless the agent's settings on this machine say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from stucktrace.facts import Container

WAIT_S = 2.0
PODS = "STUCKTRACE_KUBERNETES_PODS"


def named(containers: Collection[Container | None]) -> Callable[[Container | None], Container | None]:
    """What gives a container its names: asked for once for all of them, waited for two seconds at most."""
    if not any(container is not None and container.pod for container in containers) or not _configured():
        return lambda container: container
    from stucktrace import settings
    from stucktrace.errors import InvalidSettings
    from stucktrace.node import pod_names
    from stucktrace.output import complain
    from stucktrace.report import host

    try:
        found = settings.load(settings.default_file(), os.environ, {})
    except InvalidSettings:
        # Its agent says what is wrong with them.
        return lambda container: container
    names = pod_names.asked(found, found.node or host()["node"], complain)
    names.want(containers)
    names.wait(WAIT_S)
    return names.named


def _configured() -> bool:
    """Cheap, for most machines have no agent."""
    return bool(os.environ.get(PODS)) or os.path.lexists("/etc/stucktrace/agent.toml")
