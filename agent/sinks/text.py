"""A report as a person reads it at 3 a.m.: the verdict first, then the proof, then what to do.

It fits a screen; `verbose` shows all.
Everything that came from the target is a stranger's data: control characters are escaped and lengths bounded.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from stucktrace import reported
from stucktrace.diagnosis.words import age
from stucktrace.sinks import text_greenlets

Json = dict[str, Any]

FRAMES_SHOWN = 12
NATIVE_FRAMES_SHOWN = 10
EVIDENCE_SHOWN = 8
FINDINGS_SHOWN = 3
MISSING_SHOWN = 3
CHILDREN_SHOWN = 40
LONGEST_TEXT = 2_000

_ORDER = ("stuck", "unknown", "advice", "healthy")
_WORDS = {"stuck": "stuck", "unknown": "not to be judged", "advice": "with advice"}
_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_COLOURS = {"stuck": "31;1", "healthy": "32", "advice": "33", "unknown": "33;1"}


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """`text` on one line, with what could move a terminal's cursor or order written as an escape."""
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable() and not _BIDIRECTIONAL.intersection(text):
        return text
    return "".join(
        char if char.isprintable() and char not in _BIDIRECTIONAL else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class _Page:
    """Lines of a fixed width, with headings."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = max(width, 40)
        self.colour = colour
        self.lines: list[str] = []

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def heading(self, text: str) -> None:
        self.lines.append("")
        self.lines.append(self.paint(text, "1"))

    def text(self, text: str, indent: str = "  ", hanging: str | None = None, code: str = "") -> None:
        wrapped = textwrap.wrap(
            clean(text),
            self.width,
            initial_indent=indent,
            subsequent_indent=indent if hanging is None else hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.lines.extend(self.paint(line, code) if code else line for line in wrapped)

    def items(self, texts: Iterable[str], mark: str = "- ") -> None:
        for text in texts:
            self.text(text, "  " + mark, "  " + " " * len(mark))


def render(report: Json, *, verbose: bool = False, colour: bool = False, width: int = 100) -> str:
    """The whole text, ending with a newline."""
    page = _Page(width, colour)
    verdict = report["verdict"]
    _headline(page, report)
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
    _seen(page, report["seen"], verbose)
    if verbose:
        _details(page, report)
    return "\n".join(page.lines) + "\n"


def _proof(page: _Page, report: Json, verbose: bool) -> None:
    verdict = report["verdict"]
    if verdict["chain"]:
        page.heading("Who waits for whom")
        for depth, step in enumerate(verdict["chain"]):
            page.text(step, "  " + "   " * depth + ("-> " if depth else ""), "  " + "   " * depth + "   ")
    _stack(page, report, verbose)
    if verdict["evidence"]:
        page.heading("Evidence")
        _evidence(page, verdict["evidence"], verbose)


def _headline(page: _Page, report: Json) -> None:
    verdict, process = report["verdict"], report["process"]
    verdict_class = verdict["class"]
    label = verdict["code"] if verdict_class == "healthy" else f"{verdict['code']} ({verdict['confidence']})"
    page.lines.append(
        page.paint(label, _COLOURS[verdict_class]) + f"  {clean(_who(process, code=verdict['code']), 200)}"
    )
    page.text(verdict["summary"], "", "", "1")
    thread = reported.thread(report)
    if thread is not None and thread["work"]:
        page.text(_work_line(thread["work"]), "", "    ")


def _who(process: Json, *, code: str) -> str:
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
        words.append(f"{left:.0f} s until gunicorn kills it" if left > 0 else "gunicorn kills it now")
    if process["container"]:
        words.append(f"container {process['container']['id'][:12]}")
    return ", ".join(words)


def _stack(page: _Page, report: Json, verbose: bool) -> None:
    verdict = report["verdict"]
    thread = reported.thread(report)
    if thread is None or not (thread["python"] or thread["native"]):
        return
    kind = "Python" if not thread["native"] else "Python and native" if thread["python"] else "Native"
    page.heading(f"{kind} stack of {clean(thread['name'], 60)} (tid {thread['tid']}), innermost first")
    _frames(page, thread, verdict["frame"], verbose)


def _frames(page: _Page, thread: Json, marked: int | None, verbose: bool) -> None:
    frames = thread["python"]
    shown = range(len(frames)) if verbose else _window(len(frames), marked)
    if shown.start:
        page.lines.append(f"    ... {shown.start} inner frames (-v shows them)")
    for index in shown:
        _native_frames(page, thread, index, verbose)
        frame = frames[index]
        where = clean(f"{frame['function']} ({_short_path(frame['file'])}:{frame['line']})", 300)
        page.lines.append(page.paint("  > " + where, "1") if index == marked else "    " + where)
        if verbose and "locals" in frame:
            for name, value in frame["locals"].items():
                page.lines.append(f"        {clean(name, 100)} = {clean(value, 200)}")
    if shown.stop < len(frames):
        page.lines.append(f"    ... {len(frames) - shown.stop} outer frames (-v shows them)")
    else:
        _native_frames(page, thread, len(frames), verbose)
    if verbose and thread.get("native_ended"):
        page.text(f"(native frames may be missing: {thread['native_ended']})", "    ")


def _native_frames(page: _Page, thread: Json, inside: int, verbose: bool) -> None:
    """Those that lie between the Python frame of this index and the next inner one."""
    frames = [frame for frame in thread["native"] if frame["inside"] == inside]
    if not verbose:
        # Of functions without a name in a row, in one library, the innermost stands for all.
        pairs = zip([None, *frames], frames, strict=False)
        frames = [frame for before, frame in pairs if not (_unnamed(frame) and before and _same_file(before, frame))]
    shown = frames if verbose else frames[:NATIVE_FRAMES_SHOWN]
    for frame in shown:
        library = frame["library"] or frame["file"].rpartition("/")[2]
        page.lines.append("    " + clean(f"{frame['function']} [{library}]", 300))
    if len(shown) < len(frames):
        page.lines.append(f"    ... {len(frames) - len(shown)} native frames (-v shows them)")


def _unnamed(frame: Json) -> bool:
    return "+0x" in frame["function"]


def _same_file(one: Json, other: Json) -> bool:
    return _unnamed(one) and bool(one["file"] == other["file"])


def _window(count: int, marked: int | None) -> range:
    """Which frames to show: the innermost, moved outwards as far as the marked one needs."""
    start = max(0, min((marked or 0) - FRAMES_SHOWN + 4, count - FRAMES_SHOWN))
    return range(start, min(count, start + FRAMES_SHOWN))


def _short_path(path: str) -> str:
    """A file's last parts: from its package's folder in site-packages, else the last three."""
    for folder in ("/site-packages/", "/dist-packages/"):
        if folder in path:
            return path.rpartition(folder)[2]
    parts = path.split("/")
    return path if len(parts) <= 4 else ".../" + "/".join(parts[-3:])


def _evidence(page: _Page, lines: list[Json], verbose: bool) -> None:
    shown = lines if verbose else lines[:EVIDENCE_SHOWN]
    page.items(f"{line['text']}  [{line['source']}]" for line in shown)
    if len(shown) < len(lines):
        page.lines.append(f"  ... {len(lines) - len(shown)} more (-v shows them)")


def _greenlets(page: _Page, greenlets: list[Json], verbose: bool) -> None:
    if greenlets:
        page.heading(text_greenlets.heading(greenlets))
        for line in text_greenlets.lines(greenlets, verbose):
            page.text(line, "  ", " " * 9)


def _siblings(page: _Page, siblings: Json | None) -> None:
    if siblings and siblings["total"]:
        page.heading("Siblings")
        page.text(f"{siblings['same_wait']} of its {siblings['total']} siblings wait for the same.")


def _children(page: _Page, children: list[Json], verbose: bool) -> None:
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


def _other_findings(page: _Page, findings: list[Json], verbose: bool) -> None:
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


def _remedy(page: _Page, verdict: Json) -> None:
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


def _known_issues(page: _Page, issues: list[Json]) -> None:
    if issues:
        page.heading("Known issue")
        page.items(f"{issue['link']}: {issue['title']}. Fix: {issue['fix']}" for issue in issues)


def _seen(page: _Page, seen: Json, verbose: bool) -> None:
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


def _details(page: _Page, report: Json) -> None:
    page.heading("All threads")
    verdict_tid = report["verdict"]["tid"]
    for thread in report["threads"]:
        page.text(_thread_line(thread))
        if thread["work"]:
            page.text(_work_line(thread["work"]), "      ", "        ")
        if thread["tid"] != verdict_tid and (thread["python"] or thread["native"]):
            _frames(page, thread, None, verbose=True)
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
