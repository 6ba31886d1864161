"""The answer of `stucktrace conntrack` (schema stucktrace.conntrack/1) as a person reads it."""

from __future__ import annotations

from typing import Any

from stucktrace.diagnosis.words import age, count, listing
from stucktrace.sinks.page import Page, clean

Json = dict[str, Any]

_COLOURS = {"ok": "32", "warn": "33", "error": "31;1", "incomplete": "33;1"}
_WORDS = {"ok": "ok", "warn": "warning", "error": "error", "incomplete": "incomplete"}
KNOWN_TIMEOUTS = {432_000: "the kernel's default", 86_400: "as kube-proxy sets it"}
CONNECTIONS_SHOWN, QUIET_SHOWN = 40, 8
LABEL = 14
"""Columns of a label."""


def render(answer: Json, *, colour: bool = False, width: int = 100) -> str:
    """The whole text, ending with a newline."""
    page = Page(width, colour)
    _headline(page, answer)
    for check in answer["checks"]:
        _check(page, check)
    codes = dict.fromkeys(check["code"] for check in answer["checks"])
    if codes:
        page.text(f"What that means: stucktrace explain {' '.join(codes)}", "")
    quiet = [table for table in answer["namespaces"] if _is_quiet(table)]
    for table in answer["namespaces"]:
        if table not in quiet:
            _table(page, table)
    if quiet:
        page.heading("Nothing is tracked in")
        page.items(clean(table["name"], 200) for table in quiet[:QUIET_SHOWN])
        page.items([f"and {len(quiet) - QUIET_SHOWN} more"] * (len(quiet) > QUIET_SHOWN))
    _connections(page, answer)
    if answer["missing"]:
        page.heading("What could not be seen")
        page.items(f"{one['because']}; {one['remedy']}" for one in answer["missing"])
    return "\n".join(page.lines) + "\n"


def _headline(page: Page, answer: Json) -> None:
    status = answer["status"]
    label = page.paint(f"conntrack: {_WORDS[status]}", _COLOURS[status])
    page.lines.append(f"{label}  {clean(_scope(answer), 200)}")
    if not answer["tracking"]:
        page.text(
            "this kernel tracks no connections (nf_conntrack is not loaded): nothing here can lose one", "", "", "1"
        )
    elif status == "ok":
        tracked = sum(any(one["state"] == "tracked" for one in flow["entries"]) for flow in answer["connections"])
        tables, flows = count(len(answer["namespaces"]), "table"), count(len(answer["connections"]), "connection")
        text = f"{tables} with room and without drops"
        page.text(f"{text}; {tracked} of {flows} tracked" if answer["connections"] else text, "", "", "1")


def _scope(answer: Json) -> str:
    processes = answer["processes"]
    if answer["asked_for"]:
        return listing(f"pid {one['pid']} {_kind(one)}" for one in processes)
    if not processes:
        return "no gunicorn or Celery process is there: the tables alone"
    return f"{count(len(processes), 'gunicorn or Celery process', 'gunicorn and Celery processes')} looked at"


def _kind(process: Json) -> str:
    kind = str(process["kind"])
    return kind.replace("-", " ") if kind != "other" else str(process["command"])


def _check(page: Page, check: Json) -> None:
    word = "note" if check["status"] == "ok" else _WORDS[check["status"]]
    at = len(page.lines)
    page.text(f"{word}: {check['text']}", "- ", "  ")
    page.lines[at] = page.lines[at].replace(word, page.paint(word, _COLOURS[check["status"]]), 1)
    if check["fix"]:
        page.text(f"fix: {check['fix']}", "  ", "       ")


def _is_quiet(table: Json) -> bool:
    return not table["hooked"] and not table["count"] and not any(one["total"] for one in table["counters"].values())


def _table(page: Page, table: Json) -> None:
    page.heading(clean(table["name"][0].upper() + table["name"][1:], 200))
    maximum = table["maximum"]
    room = f"{table['count']} of {maximum} entries ({table['fill']:.1%})" if maximum else f"{table['count']} entries"
    _line(page, "table", room if table["hooked"] else f"{room}: nothing is tracked here any more")
    names = {"drop": "dropped", "early_drop": "early drops", "insert_failed": "insert failures"}
    names |= {"search_restart": "search restarts", "invalid": "invalid", "chain_too_long": "chains too long"}
    counters = table["counters"]
    parts = [
        f"{words} {counters[name]['total']}" + _grown(counters[name]["in_window"], table["window_s"])
        for name, words in names.items()
        if name in ("drop", "early_drop", "insert_failed", "invalid") or counters[name]["total"]
    ]
    _line(page, "counters", ", ".join(parts))
    tcp = table["tcp"]
    known = KNOWN_TIMEOUTS.get(tcp["established_s"])
    parts = [f"established {age(tcp['established_s'])}" + (f" ({known})" if known else "")]
    timeouts = {"unacknowledged_s": "unacknowledged", "fin_wait_s": "FIN_WAIT", "close_wait_s": "CLOSE_WAIT"}
    parts += [f"{words} {age(tcp[name])}" for name, words in timeouts.items() if tcp[name] is not None]
    if tcp["max_retrans_s"] is not None:
        parts.append(f"{age(tcp['max_retrans_s'])} after {tcp['max_retrans']} retransmissions")
    _line(page, "TCP timeouts", ", ".join(parts))
    parts = [
        f"a packet in mid-stream {'makes one' if tcp['loose'] else 'without one is INVALID'} (loose {tcp['loose']})"
    ]
    if tcp["be_liberal"] is not None:
        parts.append(
            f"one outside the window {'passes' if tcp['be_liberal'] else 'is INVALID'} (be_liberal {tcp['be_liberal']})"
        )
    parts += ["NAT is set up"] * table["translates"]
    parts += ["some traffic may be exempt (notrack)"] * table["exempts"]
    _line(page, "entries", ", ".join(parts))


def _grown(number: int, window_s: float) -> str:
    return f" (+{number} in {age(window_s)}, {number / window_s:.1f}/s)" if number and window_s else ""


def _line(page: Page, label: str, text: str) -> None:
    page.text(text, f"  {label:<{LABEL}}", " " * (LABEL + 2))


def _connections(page: Page, answer: Json) -> None:
    flows = answer["connections"]
    if not answer["asked_for"]:
        # Those that stand in a check are named there.
        return
    if not flows and answer["processes"]:
        page.heading("Connections")
        page.text("none to another host" + _loopback(answer))
        return
    page.heading("Connections" + _loopback(answer))
    for flow in flows[:CONNECTIONS_SHOWN]:
        alive = flow["keepalive"]
        keepalive = ""
        if alive is not None:
            keepalive = ", no keepalive" if not alive["on"] else ", keepalive"
            keepalive += f" after {age(alive['idle_s'])}" if alive["on"] and alive["idle_s"] is not None else ""
        fd = "" if flow["fd"] is None else f" fd {flow['fd']}"
        page.text(
            f"pid {flow['pid']}{fd}  {flow['local']} -> {flow['remote']}  {flow['state']}{keepalive}", "  ", "      "
        )
        for entry in flow["entries"]:
            page.text(f"{entry['namespace']}: {entry_text(entry, flow)}", "      ", "        ")
    if len(flows) > CONNECTIONS_SHOWN:
        page.text(f"... and {len(flows) - CONNECTIONS_SHOWN} more (--json shows all)")


def _loopback(answer: Json) -> str:
    number = answer["loopback_connections"]
    return f" ({number} within their own host left out)" if number else ""


def entry_text(entry: Json, flow: Json) -> str:
    """What one namespace says of a connection."""
    if entry["state"] == "absent":
        return "no entry any more" + (", and a rule drops what has none" if entry["drops_invalid"] else "")
    if entry["state"] == "not-tracked":
        return "not tracked here"
    if entry["state"] == "unknown":
        return "no entry, and none that it must have (it may go another way, be exempt, or be closing)"
    parts = [entry["tcp_state"] or "tracked"]
    if entry["offloaded"]:
        parts.append("OFFLOADED")
    elif entry["timeout_s"] is not None:
        parts.append(f"{age(entry['timeout_s'])} left")
    parts += ["ASSURED"] * entry["assured"] + ["UNREPLIED"] * entry["unreplied"]
    parts += [f"zone {entry['zone']}"] * bool(entry["zone"])
    (source, target), (reply_source, reply_target) = entry["original"], entry["reply"]
    if (reply_source, reply_target) != (target, source):
        parts.append(f"translated: {source} -> {target} is answered {reply_source} -> {reply_target}")
    return ", ".join(parts)
