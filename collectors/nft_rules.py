"""Whether nftables in this network namespace drops every packet that conntrack calls INVALID.

Source: nf_tables chains, rules and map elements over netlink. Only the plain shapes are recognised (`ct state invalid
drop`, or the same in a `ct state vmap`, in a base chain after nothing but other `ct state` rules): True is certain,
False means "not known to".
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stucktrace.collectors import ctnetlink
from stucktrace.collectors.ctnetlink import number
from stucktrace.collectors.netlink import attribute, attributes

GETCHAIN, GETRULE, GETSETELEM = 4, 7, 13
INET, IPV4, IPV6 = 1, 2, 10
"""Table families."""
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
OWN_HOOKS = frozenset({PREROUTING, INPUT, OUTPUT, POSTROUTING})
FORWARD_HOOKS = frozenset({PREROUTING, FORWARD, POSTROUTING})

CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, HOOK_NUMBER = 1, 3, 4, 1
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS = 1, 2, 4
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
CT_KEY, CT_STATE = 2, 0
BITWISE_MASK, CMP_OPERATOR, CMP_DATA, CMP_NOT_EQUAL = 4, 2, 3, 1
IMMEDIATE_DATA, DATA_VALUE, DATA_VERDICT, VERDICT_CODE, DROP = 2, 1, 2, 1, 0
LOOKUP_SET, LOOKUP_TARGET = 1, 3
ELEMENTS_TABLE, ELEMENTS_SET, ELEMENTS, ELEMENT_KEY, ELEMENT_DATA = 1, 2, 3, 1, 2
INVALID = 1
"""NF_CT_STATE_INVALID_BIT."""
IGNORED = frozenset({"counter", "log"})
UNDECIDED = frozenset({"ct", "bitwise", "cmp", "meta", "payload", *IGNORED})
"""Expressions that give no verdict."""

Chain = tuple[int, bytes, bytes]
"""(family, table, name)."""


@dataclass(frozen=True)
class Rule:
    """What matters of one rule."""

    state_mask: int | None
    """The `ct state` bits that it matches, where that is all it looks at."""
    drops: bool
    decides: bool
    """It has a verdict of any kind."""
    verdict_map: bytes = b""
    """The name of the map in which it looks up nothing but the `ct state`."""


def drops_invalid(v4: bool, *, own: bool) -> bool:
    """In the namespace of the calling thread, on the way of a flow of a process in it (`own`) or of one through it."""
    try:
        with ctnetlink.open_socket() as netfilter:
            hooks = dict(_base_chains(netfilter))
            rules: dict[Chain, list[Rule]] = {}
            for chain, rule in list(_rules(netfilter)):
                rules.setdefault(chain, []).append(_resolved(netfilter, chain, rule))
    except OSError:
        return False
    return any(
        chain[0] in (INET, IPV4 if v4 else IPV6)
        and hook in (OWN_HOOKS if own else FORWARD_HOOKS)
        and reaches_drop(rules.get(chain, []))
        for chain, hook in hooks.items()
    )


def reaches_drop(rules: list[Rule]) -> bool:
    """An INVALID packet is dropped by one of these, whatever else it is."""
    for rule in rules:
        matches = rule.state_mask is not None and bool(rule.state_mask & INVALID)
        if matches and rule.drops:
            return True
        if rule.decides and (rule.state_mask is None or matches):
            return False
    return False


def _base_chains(netfilter: socket.socket) -> Iterator[tuple[Chain, int]]:
    for family, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETCHAIN, 0, b"", dump=True):
        parts = dict(attributes(body))
        if CHAIN_HOOK in parts:
            hook = dict(attributes(parts[CHAIN_HOOK]))
            yield (family, parts.get(CHAIN_TABLE, b""), parts.get(CHAIN_NAME, b"")), number(hook.get(HOOK_NUMBER, b""))


def _rules(netfilter: socket.socket) -> Iterator[tuple[Chain, Rule]]:
    for family, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETRULE, 0, b"", dump=True):
        parts = dict(attributes(body))
        chain = (family, parts.get(RULE_TABLE, b""), parts.get(RULE_CHAIN, b""))
        yield chain, decode_rule(parts.get(RULE_EXPRESSIONS, b""))


def _resolved(netfilter: socket.socket, chain: Chain, rule: Rule) -> Rule:
    """A rule with a verdict map as what it does with INVALID."""
    if not rule.verdict_map:
        return rule
    family, table, _ = chain
    question = attribute(ELEMENTS_TABLE, table) + attribute(ELEMENTS_SET, rule.verdict_map)
    for _, body in ctnetlink.ask(netfilter, ctnetlink.NF_TABLES, GETSETELEM, family, question, dump=True):
        for _, element in attributes(dict(attributes(body)).get(ELEMENTS, b"")):
            parts = dict(attributes(element))
            if int.from_bytes(_value(parts, ELEMENT_KEY), sys.byteorder) == INVALID:
                return Rule(INVALID, _verdict(parts, ELEMENT_DATA) == DROP, True)
    return Rule(0, False, True)


def decode_rule(expressions: bytes) -> Rule:
    """Out of NFTA_RULE_EXPRESSIONS. `ct state X` is: load the state, mask it with X, compare with 0."""
    steps: list[tuple[str, Mapping[int, bytes]]] = []
    for _, expression in attributes(expressions):
        parts = dict(attributes(expression))
        name = parts.get(EXPRESSION_NAME, b"").rstrip(b"\0").decode(errors="replace")
        steps.append((name, dict(attributes(parts.get(EXPRESSION_DATA, b"")))))
    names = [name for name, _ in steps if name not in IGNORED]
    decides = any(name not in UNDECIDED for name, _ in steps)
    mask = drop = None
    for name, data in steps:
        if name == "bitwise":
            # The state's bits in the machine's own order.
            mask = int.from_bytes(_value(data, BITWISE_MASK), sys.byteorder)
        elif name == "immediate":
            drop = _verdict(data, IMMEDIATE_DATA) == DROP
    plain = names[:3] == ["ct", "bitwise", "cmp"] and names[3:] in ([], ["immediate"])
    if plain:
        ct, compare = (next(data for name, data in steps if name == wanted) for wanted in ("ct", "cmp"))
        plain = (
            number(ct.get(CT_KEY, b"\xff")) == CT_STATE
            and number(compare.get(CMP_OPERATOR, b"")) == CMP_NOT_EQUAL
            and not any(_value(compare, CMP_DATA))
        )
    if names == ["ct", "lookup"]:
        ct, lookup = (next(data for name, data in steps if name == wanted) for wanted in ("ct", "lookup"))
        # Without a target register it is a plain set, and with flags an inverted one.
        if number(ct.get(CT_KEY, b"\xff")) == CT_STATE and not number(lookup.get(LOOKUP_TARGET, b"\xff")):
            return Rule(None, False, decides, lookup.get(LOOKUP_SET, b""))
    return Rule(mask if plain else None, bool(drop), decides)


def _verdict(data: Mapping[int, bytes], kind: int) -> int | None:
    verdict = dict(attributes(dict(attributes(data.get(kind, b""))).get(DATA_VERDICT, b"")))
    return number(verdict[VERDICT_CODE]) if VERDICT_CODE in verdict else None


def _value(data: Mapping[int, bytes], kind: int) -> bytes:
    return dict(attributes(data.get(kind, b""))).get(DATA_VALUE, b"")
