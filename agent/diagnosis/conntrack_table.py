"""What a conntrack table and the entries of a process's connections mean for it. Pure: facts in, checks out.

A full table stops new connections only: each connection that has its entry goes on. A connection whose entry is gone is
in danger alone: what its next packet meets depends on nf_conntrack_tcp_loose, on NAT and on rules for INVALID.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import Check
from stucktrace.facts.conntrack import ABSENT, TRACKED, Flow, FlowEntry, NamespaceTable
from stucktrace.facts.settings import ERROR, OK, WARN

FULL, FILLING = 0.99, 0.8
"""Shares of the table. Entries that expire make room for a moment, so it is never quite full."""
NLB_IDLE_S = 350
"""After which AWS's network load balancers and NAT gateways forget an idle connection (their documentation)."""
SILENT = 0.5
"""Share of the timeout for which a connection without keepalive has been silent, to be warned of."""
ROOM = "sysctl -w net.netfilter.nf_conntrack_max={}: on the node itself, it holds for every namespace"
WHAT_FILLS = "conntrack -L -o extended | awk '{print $3, $6}' | sort | uniq -c | sort -rn | head: what fills it"
MEND_FLOW = "let the process connect anew: nothing else gives it an entry"


def checks(tables: Collection[NamespaceTable], flows: Collection[Flow], *, on_aws: bool = False) -> tuple[Check, ...]:
    """The gravest first."""
    by_inode = {table.netns: table for table in tables}
    found = [
        *(check for table in tables for check in table_checks(table)),
        *lost_entries(flows, by_inode),
        *keepalive_checks(flows, by_inode),
        *(nlb_checks(flows) if on_aws else ()),
    ]
    return tuple(sorted(found, key=lambda check: (ERROR, WARN, OK).index(check.status)))


def table_checks(table: NamespaceTable) -> Iterator[Check]:
    """`table-full`: the conntrack table has no room for new connections.

    A new connection is dropped unless an unanswered one can be thrown out for it. Connections that have their entry
    go on.

    Error: 99 % of the table and more are in use: entries that expire make room for moments.

    Later: find what fills it (`conntrack -L`), or raise `net.netfilter.nf_conntrack_max` on the node, for it holds
    for every namespace.

    Not: a table that is nearly full and drops nothing (`table-filling`).

    Try: `stucktrace conntrack`; with `sysctl -w net.netfilter.nf_conntrack_max=8` in a virtual machine.

    `drops-now`: the table drops first packets of new connections.

    The kernel's counter `drop` grew between the two readings.

    Error: and over 80 % of the table are in use: it is for want of room.

    Warn: the table has room. Packets of one new connection that overtake each other are dropped too, so a few are
    harmless.

    Later: room in the table, as for `table-full`; for a few drops with room, nothing.

    Not: what was dropped before the first reading (`drops-in-the-past`).

    Try: `stucktrace conntrack --for 30s` at the busiest hour.

    `table-filling`: over 80 % of the conntrack table are in use.

    Nothing is dropped yet.

    Warn: over 80 %, and below 99 %, without drops.

    Later: as for `table-full`, in time.

    Not: a table that drops already (`drops-now`).

    Try: `stucktrace conntrack`.

    `early-drops-now`: unanswered connections are thrown out to make room.

    The table was full for a moment, and an entry without an answer had to go for a new one.

    Warn: the kernel's counter `early_drop` grew between the two readings.

    Later: as for `table-full`.

    Not: the loss of an established connection: only unanswered ones are thrown out.

    Try: `stucktrace conntrack --for 30s` at the busiest hour.

    `drops-in-the-past`: the table has dropped connections since it was made, none now.

    What was lost then is lost; it may happen again.

    Warn: the counters `drop` or `early_drop` are not 0, did not grow between the readings, and the table is not
    full.

    Later: look again at the busiest hour.

    Not: drops of now.

    Try: `stucktrace conntrack`.

    `insert-failures-now`: first packets were lost to an entry that was in their way.

    Two packets at once from one port, as glibc's resolver sends them for A and AAAA, race each other for one entry.

    Warn: the kernel's counter `insert_failed` grew between the two readings.

    Later: `options single-request-reopen` in /etc/resolv.conf, or a DNS cache on the node.

    Not: want of room.

    Try: `stucktrace conntrack --for 30s`.

    `hash-too-small`: too many connections share one hash bucket, and new ones were dropped for it.

    The table may have room and still refuse a connection whose bucket is too long.

    Warn: the kernel has counted chains that were too long since the table was made.

    Later: raise `net.netfilter.nf_conntrack_buckets` on the node.

    Not: want of room.

    Try: `stucktrace conntrack`.
    """
    before, after, where = table.before, table.after, table.where
    fill = after.fill or 0.0
    room = f"{after.count} of {after.maximum} entries ({fill:.0%})"
    fixes = f"{WHAT_FILLS}; {ROOM.format(2 * (after.maximum or after.count))}"
    dropped, early = after.drop - before.drop, after.early_drop - before.early_drop
    refused = f"; {count(dropped, 'new connection')} dropped in {age(table.window_s)}" if dropped > 0 else ""
    if fill >= FULL:
        text = f"the table of {where} is full, {room}: a new connection is dropped there unless one without an answer"
        text += f" can be thrown out for it{refused}"
        yield Check("table-full", ERROR, text, fix=fixes)
    elif dropped > 0 and fill > FILLING:
        text = f"the table of {where} drops new connections now: {dropped} in {age(table.window_s)}, {room}"
        yield Check("drops-now", ERROR, text, fix=fixes)
    elif fill > FILLING:
        yield Check("table-filling", WARN, f"the table of {where} is filling up: {room}", fix=fixes)
    if dropped > 0 and fill <= FILLING:
        text = f"{where} dropped {count(dropped, 'first packet')} in {age(table.window_s)} though its table has room"
        fix = "none needed for a few: packets of one new connection that overtake each other"
        yield Check("drops-now", WARN, f"{text} ({room})", fix=fix)
    if early > 0:
        text = f"{where} threw {count(early, 'unanswered connection')} out to make room, in {age(table.window_s)}"
        yield Check("early-drops-now", WARN, text, fix=fixes)
    elif (before.drop or before.early_drop) and dropped <= 0 and fill < FULL:
        parts = [count(before.drop, "new connection")] * bool(before.drop)
        parts += [f"{before.early_drop} unanswered ones to make room"] * bool(before.early_drop)
        text = f"{where} has dropped {' and '.join(parts)} since it was made, none now"
        yield Check("drops-in-the-past", WARN, text, fix=f"see again at the busiest hour; {WHAT_FILLS}")
    failed = after.insert_failed - before.insert_failed
    if failed > 0:
        text = f"{where} lost {count(failed, 'first packet')} in {age(table.window_s)}: an entry was in its way"
        fix = "two packets at once from one port (DNS over UDP: options single-request-reopen, or a node-local cache)"
        yield Check("insert-failures-now", WARN, text, fix=fix)
    if after.chain_too_long:
        text = f"{where} dropped {count(after.chain_too_long, 'new connection')}: too many share one hash bucket"
        yield Check("hash-too-small", WARN, text, fix="raise net.netfilter.nf_conntrack_buckets on the node")


def lost_entries(flows: Collection[Flow], tables: dict[int, NamespaceTable]) -> Iterator[Check]:
    """`entry-lost`: an established connection has lost its conntrack entry.

    It was evicted, or is older than the tracking. What its next packet meets depends on nf_conntrack_tcp_loose, on
    NAT and on rules for INVALID; the text says which.

    Error: the next packet may be dropped, or translated anew and reach another host.

    Warn: nothing is translated, and the next packet makes a new entry, or no rule is known to drop it.

    Later: let the process connect anew, and keep the next connection alive within the table's timeout; where its
    silence was shorter than that, look for what flushes entries.

    Not: a connection that is new, is exempt, or does not pass a place where conntrack is hooked; an entry that only
    one of two readings missed.

    Try: `make test T=test_an_evicted_entry_is_named_at_once` in a clone.
    """
    for flow in flows:
        for entry in flow.entries:
            if entry.state == ABSENT and entry.netns in tables:
                yield _lost(flow, entry, tables[entry.netns])


def _lost(flow: Flow, entry: FlowEntry, table: NamespaceTable) -> Check:
    # NAT rules that are there may be for others: that one is for this connection, another one like it tells.
    harmless = not entry.translated and (bool(table.settings.loose) or not (entry.drops_invalid or entry.alike))
    surely = "was evicted" if entry.alike else "is gone (evicted, or the connection is older than the tracking)"
    evidence = (
        f"ctnetlink knows no entry of {name(flow)} in {entry.where}, asked twice",
        *(["another connection between the same hosts has its entry there"] if entry.alike else []),
        *(["its packets go through there, and nothing there is exempt"] if entry.on_way else []),
        f"nf_conntrack_tcp_loose={table.settings.loose}",
        *(["a rule drops what is INVALID"] if entry.drops_invalid else []),
    )
    text = f"the entry of {name(flow)} (pid {flow.pid}, {fds(flow)}) {surely} in {entry.where}"
    text += f": {next_packet(entry, table)}"
    fix = f"{MEND_FLOW}; {outlive(flow, table)}"
    return Check("entry-lost", WARN if harmless else ERROR, text, evidence, fix)


def next_packet(entry: FlowEntry, table: NamespaceTable) -> str:
    """What happens to the next packet of a connection without an entry."""
    if table.settings.loose:
        if entry.translated:
            return (
                "its next packet makes a new entry, with a translation of its own: it may reach another host, which "
                "resets it"
            )
        if table.translates:
            return (
                "its next packet makes a new entry (nf_conntrack_tcp_loose=1), and it goes on, unless its addresses "
                "were translated"
            )
        return "its next packet makes a new entry (nf_conntrack_tcp_loose=1), and it goes on"
    if entry.drops_invalid:
        return "its next packet is INVALID, and a rule there drops it: the connection is dead, and neither end knows"
    return "its next packet is INVALID: lost if a rule drops such packets, and never translated"


def outlive(flow: Flow, table: NamespaceTable) -> str:
    """How the next one keeps its entry."""
    timeout_s, silent_s, keepalive = table.settings.established_s, silence_s(flow), flow.socket.keepalive
    if timeout_s is None:
        return "keep it alive with keepalives or heartbeats"
    beats = keepalive is not None and keepalive.on and keepalive.idle_s is not None and keepalive.idle_s < timeout_s
    if beats or (silent_s is not None and silent_s < timeout_s):
        return (
            f"its silence was shorter than the table's timeout ({age(timeout_s)}), so look for what flushes entries: "
            "conntrack -F or -D, a reload of the firewall or of kube-proxy"
        )
    return f"let it send a keepalive or a heartbeat well within {age(timeout_s)}, the timeout of that table"


def keepalive_checks(flows: Collection[Flow], tables: dict[int, NamespaceTable]) -> Iterator[Check]:
    """`silent-without-keepalive`: a connection without keepalive is silent for so long that its entry will be
    forgotten.

    Nothing has passed for half of the table's timeout, so no heartbeat did either.

    Warn: keepalive is off on the live socket, and its silence is longer than half of the timeout.

    Later: keepalive with an idle time below the table's timeout.

    Not: an entry that hardware has taken over (offload).

    Try: `stucktrace conntrack PID` of a process with an old idle connection.

    `timeout-below-keepalive`: the table forgets a silent connection before its first keepalive comes.

    An idle connection is then kept by nothing, and loses its entry while both ends think that it is there.

    Warn: TCP_KEEPIDLE of the live socket is not below the table's timeout for established connections.

    Later: TCP_KEEPIDLE, or `net.ipv4.tcp_keepalive_time`, well below the timeout, a third of it say.

    Not: a connection whose application sends something sooner; that is not known here, so it is a warning.

    Try: `sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=3600` in a virtual machine, then `stucktrace
    conntrack`.
    """
    slow: defaultdict[tuple[int, float, int], list[Flow]] = defaultdict(list)
    for flow in flows:
        keepalive = flow.socket.keepalive
        for entry in flow.entries:
            table = tables.get(entry.netns)
            timeout_s = table.settings.established_s if table else None
            if entry.state != TRACKED or entry.tcp_state != "ESTABLISHED" or timeout_s is None or keepalive is None:
                continue
            if keepalive.on and keepalive.idle_s is not None and keepalive.idle_s >= timeout_s:
                slow[entry.netns, keepalive.idle_s, timeout_s].append(flow)
            silent_s = silence_s(flow)
            if not keepalive.on and silent_s is not None and SILENT * timeout_s < silent_s and not entry.offloaded:
                text = (
                    f"{name(flow)} (pid {flow.pid}, {fds(flow)}) has no keepalive, and was silent for {age(silent_s)}: "
                    f"{entry.where} forgets it after {age(timeout_s)}"
                )
                fix = f"keepalive with an idle time below {age(timeout_s)}"
                yield Check("silent-without-keepalive", WARN, text, fix=fix)
    for (inode, idle_s, timeout_s), those in slow.items():
        pids = listing(f"{pid}" for pid in sorted({flow.pid for flow in those}))
        text = (
            f"{tables[inode].where} forgets a silent connection after {age(timeout_s)}, and the first keepalive of "
            f"{count(len(those), 'connection')} of pid {pids} comes after {age(idle_s)} (as {name(those[0])}): "
            "its entry is gone before"
        )
        quicker = f"below {age(timeout_s)}, for example {max(1, timeout_s // 3)} s"
        fix = f"TCP_KEEPIDLE (or net.ipv4.tcp_keepalive_time) {quicker}"
        evidence = (
            f"nf_conntrack_tcp_timeout_established={timeout_s}",
            f"TCP_KEEPIDLE={idle_s:.0f} on the live socket",
        )
        yield Check("timeout-below-keepalive", WARN, text, evidence, fix)


def nlb_checks(flows: Collection[Flow]) -> Iterator[Check]:
    """`aws-idle-timeout`: a load balancer or NAT gateway of AWS would forget the connection before its first
    keepalive.

    They forget an idle connection after 350 s. Whether one stands in between is not known.

    Remark: this machine is AWS's, and the first keepalive of a connection comes after more than 350 s.

    Later: TCP_KEEPIDLE below 350 s where there is one.

    Not: a machine elsewhere.

    Try: `stucktrace conntrack` on a machine of AWS.
    """
    slow = [
        flow
        for flow in flows
        if (alive := flow.socket.keepalive) and alive.on and alive.idle_s is not None and alive.idle_s > NLB_IDLE_S
    ]
    if slow:
        text = (
            f"{count(len(slow), 'connection')} (as {name(slow[0])}) with a first keepalive after more than "
            f"{NLB_IDLE_S} s: a network load balancer or NAT gateway of AWS in between would have forgotten it"
        )
        yield Check("aws-idle-timeout", OK, text, fix=f"TCP_KEEPIDLE below {NLB_IDLE_S} s where there is one")


def silence_s(flow: Flow) -> float | None:
    """For how long nothing has passed, by the socket's own clocks. None where they are not known."""
    socket = flow.socket
    ages = [one for one in (socket.last_send_s, socket.last_receive_s, socket.last_ack_s) if one is not None]
    return min(ages) if len(ages) == 3 and not socket.unacked else None


def name(flow: Flow) -> str:
    return f"{flow.socket.local} -> {flow.socket.remote}"


def fds(flow: Flow) -> str:
    return f"fd {flow.socket.fds[0]}" if flow.socket.fds else "no fd"
