"""A report as a person reads it at 3 a.m.: the verdict first, then the proof, then what to do.

It fits a screen; `verbose` shows all.
Everything that came from the target is a stranger's data: control characters are escaped and lengths bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stucktrace import reported
from stucktrace.diagnosis.words import age
from stucktrace.sinks import text_greenlets, text_stacks
from stucktrace.sinks.page import Page, clean

Json = dict[str, Any]

EVIDENCE_SHOWN = 8
FINDINGS_SHOWN = 3
MISSING_SHOWN = 3
CHILDREN_SHOWN = 40
_BEAT_S = 3.0
"""The main thread of a gthread or greenlet worker beats about once a second."""

_ORDER = ("stuck", "unknown", "advice", "healthy")
_WORDS = {"stuck": "stuck", "unknown": "not to be judged", "advice": "with advice"}
_COLOURS = {"stuck": "31;1", "healthy": "32", "advice": "33", "unknown": "33;1"}


def render(report: Json, *, verbose: bool = False, colour: bool = False, width: int = 100) -> str:
    """The whole text, ending with a newline."""
    page = Page(width, colour)
    verdict = report["verdict"]
    _headline(page, report)
    _probes(page, report["sockets"])
    _children(page, report["children"], verbose)
    if verbose or verdict["class"] != "healthy" or not report["children"]:
        _proof(page, report, verbose)
    _greenlets(page, report["greenlets"], verbose)
    _siblings(page, report["siblings"])
    _other_findings(page, report["findings"][1:], verbose)
    if verdict.get("story"):
        page.heading("What happened")
        page.text(verdict["story"])
    _remedy(page, verdict)
    _known_issues(page, verdict["known_issues"])
    if verdict["class"] != "healthy":
        page.lines.append("")
        page.text(f"What this verdict means, and what it is not: stucktrace explain {verdict['code']}", "")
    _seen(page, report["seen"], verbose)
    if verbose:
        _details(page, report)
    return "\n".join(page.lines) + "\n"


def _proof(page: Page, report: Json, verbose: bool) -> None:
    verdict = report["verdict"]
    if verdict["chain"]:
        page.heading("Who waits for whom")
        for depth, step in enumerate(verdict["chain"]):
            page.text(step, "  " + "   " * depth + ("-> " if depth else ""), "  " + "   " * depth + "   ")
    _layers(page, report.get("amqp"))
    text_stacks.stacks(page, report, verbose)
    if verdict["evidence"]:
        page.heading("Evidence")
        _evidence(page, verdict["evidence"], verbose)


def _layers(page: Page, amqp: Json | None) -> None:
    if amqp is None or not amqp["layers"]:
        return
    page.heading("Layer by layer")
    for layer in amqp["layers"]:
        page.text("; ".join(layer["lines"]), f"  {layer['layer']} {layer['name']:<10}", " " * 14)


def _headline(page: Page, report: Json) -> None:
    verdict, process = report["verdict"], report["process"]
    verdict_class, thread = verdict["class"], reported.thread(report)
    label = verdict["code"] if verdict_class == "healthy" else f"{verdict['code']} ({verdict['confidence']})"
    page.lines.append(
        page.paint(label, _COLOURS[verdict_class]) + f"  {clean(_who(process, thread, code=verdict['code']), 200)}"
    )
    page.text(verdict["summary"], "", "", "1")
    if thread is not None and thread["work"]:
        page.text(_work_line(thread["work"]), "", "    ")


def _probes(page: Page, sockets: list[Json]) -> None:
    """Asked for by name, so it is answered whatever the verdict is."""
    asked = [socket for socket in sockets if socket["probe"]]
    if asked:
        page.heading("Probe")
        page.items(f"fd {socket['fd']}: {socket['probe']['text']}" for socket in asked)


def _who(process: Json, thread: Json | None, *, code: str) -> str:
    kind = process["kind"].replace("-", " ")
    role = f" ({process['role']})" if process["role"] else ""
    words = [f"pid {process['pid']}", kind + role if kind != "other" else (process["argv"] or ["?"])[0]]
    if process["ns_pid"] != process["pid"]:
        words[0] += f" ({process['ns_pid']} in its own namespace)"
    if process["python"]:
        words.append(f"Python {process['python']['version']}".strip())
    worker = process["worker"]
    # An idle worker's next heartbeat comes long before.
    if worker["seconds_to_kill"] is not None and code != "idle":
        left = worker["seconds_to_kill"]
        if _beats_on(worker, thread):
            words.append("whose heartbeat goes on: gunicorn does not kill it")
        else:
            words.append(f"{left:.0f} s until gunicorn kills it" if left > 0 else "gunicorn kills it now")
    if process["container"]:
        words.append(_where(process["container"]))
    return ", ".join(words)


def _where(container: Json) -> str:
    """As kubectl would be told, where that is known."""
    name, short, pod = container["name"], container["id"][:12], container["pod"]
    called = f"{name} ({short})" if name and short else name or short
    if pod and container.get("pod_name"):
        pod = f"{container['namespace']}/{container['pod_name']}"
    return " of ".join(word for word in (called and f"container {called}", pod and f"pod {pod}") if word)


def _beats_on(worker: Json, thread: Json | None) -> bool:
    """Its last heartbeat is just now, and the verdict's thread has hung since long before: another thread beats."""
    beat_s, hung_s = worker["last_notify_s"], thread["blocked_s"] if thread is not None else None
    return beat_s is not None and hung_s is not None and beat_s < _BEAT_S and hung_s > beat_s + _BEAT_S


def _evidence(page: Page, lines: list[Json], verbose: bool) -> None:
    shown = lines if verbose else lines[:EVIDENCE_SHOWN]
    page.items(f"{line['text']}  [{line['source']}]" for line in shown)
    if len(shown) < len(lines):
        page.lines.append(f"  ... {len(lines) - len(shown)} more (-v shows them)")


def _greenlets(page: Page, greenlets: list[Json], verbose: bool) -> None:
    if greenlets:
        page.heading(text_greenlets.heading(greenlets))
        for line in text_greenlets.lines(greenlets, verbose):
            page.text(line, "  ", " " * 9)


def _siblings(page: Page, siblings: Json | None) -> None:
    if siblings and siblings["total"]:
        page.heading("Siblings")
        page.text(f"{siblings['same_wait']} of its {siblings['total']} siblings wait for the same.")


def _children(page: Page, children: list[Json], verbose: bool) -> None:
    if not children:
        return
    worst_first = sorted(children, key=lambda child: (_ORDER.index(child["verdict"]["class"]), child["pid"]))
    worst = worst_first[0]
    unwell = sum(child["verdict"]["class"] == worst["verdict"]["class"] for child in children)
    if worst["verdict"]["class"] == "healthy":
        page.heading(f"Its {len(children)} children: all healthy")
    else:
        page.heading(
            f"Its {len(children)} children: {unwell} {_WORDS[worst['verdict']['class']]}; "
            f"`stucktrace pid {worst['pid']}` tells the whole story"
        )
    shown = worst_first if verbose else worst_first[:CHILDREN_SHOWN]
    for child in shown:
        verdict = child["verdict"]
        page.text(f"{child['pid']:>7}  {verdict['code']:<14} {verdict['summary']}", "  ", " " * 26)
    if len(shown) < len(children):
        page.lines.append(f"  ... {len(children) - len(shown)} more (-v shows them)")


def _other_findings(page: Page, findings: list[Json], verbose: bool) -> None:
    if not findings:
        return
    page.heading("Also")
    shown = findings if verbose else findings[:FINDINGS_SHOWN]
    for finding in shown:
        page.text(f"{finding['code']} ({finding['confidence']}): {finding['summary']}", "  - ", "    ")
        if finding["class"] == "advice" or verbose:
            for later in finding["remedy"]["later"]:
                page.text(f"{later['do']}: {later['why']}", "      ", "      ")
        if verbose:
            for line in finding["evidence"]:
                page.text(f"{line['text']}  [{line['source']}]", "      - ", "        ")
    if len(shown) < len(findings):
        page.lines.append(f"  ... {len(findings) - len(shown)} more (-v shows them)")


def _remedy(page: Page, verdict: Json) -> None:
    remedy = verdict["remedy"]
    if remedy["now"]:
        page.heading("Do now")
        for now in remedy["now"]:
            page.text(now["do"], "  - ", "    ")
            for label in ("risk", "loses"):
                if now[label]:
                    page.text(f"{label}: {now[label]}", "    ", "    ")
    if remedy["later"]:
        page.heading("Change later")
        page.items(f"{later['do']}: {later['why']}" for later in remedy["later"])


def _known_issues(page: Page, issues: list[Json]) -> None:
    if issues:
        page.heading("Known issue")
        page.items(f"{issue['link']}: {issue['title']}. Fix: {issue['fix']}" for issue in issues)


def _seen(page: Page, seen: Json, verbose: bool) -> None:
    if seen["paused_at_most_s"] == 0:
        page.lines.append("")
        page.text("Its native frames were read while its threads slept: nothing was stopped.", "")
    elif seen["paused_at_most_s"] is not None:
        page.lines.append("")
        page.text(f"For its native frames the target stood still, {age(seen['paused_at_most_s'])} at most.", "")
    lost = seen["lost_records"]
    if not (seen["missing"] or lost):
        return
    page.heading("Could not be seen")
    missing = seen["missing"] if verbose else seen["missing"][:MISSING_SHOWN]
    page.items(f"{entry['what']}: {entry['because']}. {_sentence(entry['remedy'])}".rstrip() for entry in missing)
    if len(missing) < len(seen["missing"]):
        page.lines.append(f"  ... {len(seen['missing']) - len(missing)} more (-v shows them)")
    if lost:
        page.items([f"{lost} kernel records were lost: counts in this report may be too low"])


def _sentence(text: str) -> str:
    return f"Remedy: {text}" if text else ""


def _details(page: Page, report: Json) -> None:
    page.heading("All threads")
    verdict_tid = report["verdict"]["tid"]
    for thread in report["threads"]:
        page.text(_thread_line(thread))
        if thread["work"]:
            page.text(_work_line(thread["work"]), "      ", "        ")
        if thread["tid"] != verdict_tid and (thread["python"] or thread["native"]):
            text_stacks.frames(page, report, thread, None, verbose=True)
    if report["sockets"]:
        page.heading("Sockets")
        for socket in report["sockets"]:
            page.text(_socket_line(socket), hanging="      ")
    if report["locks"]:
        page.heading("Locks")
        for lock in report["locks"]:
            page.text(_lock_line(lock), hanging="      ")
    seen = report["seen"]
    hooks = ", ".join(f"{name} by {means}" for name, means in seen["hooks"].items())
    page.heading("How it was seen")
    page.text(f"engine {seen['engine']}" + (f": {hooks}" if hooks else ""))
    page.text(", ".join(f"{name} {value:.0f} ms" for name, value in report["timings_ms"].items()))


def _thread_line(thread: Json) -> str:
    call = thread["syscall"]
    words = [f"{thread['tid']} {thread['name']}", f"state {thread['state']}"]
    if call:
        words.append(call["name"] + (f" on fd {call['fd']}" if call["fd"] is not None else ""))
    if thread["blocked_s"] is not None:
        words.append(f"asleep for {age(thread['blocked_s'])}")
    if thread["owns_gil"]:
        words.append("holds the GIL")
    if thread["waits_for"]["ref"]:
        words.append(f"waits for {thread['waits_for']['kind']} {thread['waits_for']['ref']}")
    return ", ".join(words)


def _work_line(work: Json) -> str:
    """For example "serving GET /orders/7 from 10.0.0.9:4242 for 12 s"."""
    since = f" for {age(work['age_s'])}" if work["age_s"] is not None else ""
    if work["kind"] == "task":
        return f"running task {work['name']}, id {work['id'] or 'not known'}" + (f",{since}" if since else "")
    return f"serving {work['name']}" + (f" from {work['peer']}" if work["peer"] else "") + since


def _socket_line(socket: Json) -> str:
    words = [f"fd {socket['fd']} {socket['protocol']} {socket['state'] or ''}".rstrip()]
    words.append(f"{socket['local']} -> {socket['remote']}" if socket["remote"] else socket["local"])
    for name in ("unacked", "retransmits", "backoff"):
        if socket[name]:
            words.append(f"{name} {socket[name]}")
    for name in ("send_bytes", "receive_bytes"):
        if socket["queues"][name]:
            words.append(f"{name.replace('_bytes', ' queue')} {socket['queues'][name]} bytes")
    words.extend(_socket_ages(socket))
    if socket["shared_with"]:
        words.append("shared with " + " ".join(map(str, socket["shared_with"])))
    return ", ".join(word for word in words if word)


def _socket_ages(socket: Json) -> Iterator[str]:
    for name, words in (("last_send_s", "sent"), ("last_receive_s", "received"), ("last_ack_s", "acknowledged")):
        if socket[name] is not None:
            yield f"{words} {age(socket[name])} ago"
    if socket["gives_up_s"] is not None:
        yield f"the kernel gives up in {age(socket['gives_up_s'])}"


def _lock_line(lock: Json) -> str:
    owners = ", ".join(
        f"{owner['name'] or 'thread'} {owner['tid'] if owner['tid'] is not None else '?'} ({owner['state']})"
        for owner in lock["owners"]
    )
    waiters = ", ".join(str(waiter["tid"]) for waiter in lock["waiters"])
    name = f" {lock['path']}" if lock["path"] else ""
    where = f"{lock['kind']}{name} at {lock['address']} in {lock['mapping']}"
    return f"{where}; held by {owners or 'not known'}; waited for by {waiters}"
