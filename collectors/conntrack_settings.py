"""The conntrack settings for TCP of the calling thread's network namespace. Source: /proc/sys/net/netfilter."""

from __future__ import annotations

from pathlib import Path

from stucktrace.facts.conntrack import ConntrackSettings

SYSCTL = Path("/proc/sys/net/netfilter")
NAMES = {
    "established_s": "timeout_established",
    "unacknowledged_s": "timeout_unacknowledged",
    "max_retrans_s": "timeout_max_retrans",
    "max_retrans": "max_retrans",
    "syn_sent_s": "timeout_syn_sent",
    "fin_wait_s": "timeout_fin_wait",
    "close_wait_s": "timeout_close_wait",
    "loose": "loose",
    "be_liberal": "be_liberal",
}
"""Field -> the setting's name behind nf_conntrack_tcp_."""


def read() -> ConntrackSettings:
    return ConntrackSettings(**{field: _number(f"nf_conntrack_tcp_{name}") for field, name in NAMES.items()})


def _number(name: str) -> int | None:
    try:
        return int((SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None
