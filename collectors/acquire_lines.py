"""Does a function hold a lock at one of its lines, having called `lock.acquire()` by hand? Read from its source alone.

Only what every way to that line has passed counts: a plain `acquire()` in a statement before it, at the same level or
outside of it; `if not lock.acquire(...):` that leaves the function or loop; `if lock.acquire(...):` around the line. An
`acquire` that may fail and is not asked, one in a branch or a loop that is over, and everything before a `release` that
may have been passed, say nothing. Pure: no file is read here.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Collection, Iterator, Sequence
from tokenize import TokenError

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Function:
    """The body of one function in a file's text."""

    def __init__(self, text: str, first_line: int, name: str) -> None:
        """`first_line`: of the function with its decorators, from 1; a module has the name "<module>"."""
        self._body: Sequence[ast.stmt] = ()
        lines = text.splitlines(keepends=True)
        try:
            if name == "<module>":
                self._body = _parsed(text).body
                return
            block = "".join(inspect.getblock(lines[first_line - 1 :])) if 0 < first_line <= len(lines) else ""
            indented = block[:1].isspace()
            tree = _parsed("if 1:\n" + block if indented else block)
        except (SyntaxError, TokenError, ValueError, RecursionError, MemoryError):
            return
        ast.increment_lineno(tree, first_line - (2 if indented else 1))
        found = tree.body[0] if tree.body else None
        if indented and isinstance(found, ast.If):
            found = found.body[0]
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == name:
            self._body = found.body

    @property
    def known(self) -> bool:
        return bool(self._body)

    def releases(self, names: Collection[str]) -> bool:
        """It calls `release` on one of these names somewhere, `lock` or `self.lock` say."""
        return any(_calls(each, names, "release") for each in self._body)

    def acquired(self, names: Collection[str], line: int) -> int | None:
        """The line whose `acquire` of one of these names still holds at `line`; None where none does for certain."""
        return _at(self._body, names, line, None)


def _parsed(text: str) -> ast.Module:
    """The parser's warnings are for who wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _at(body: Sequence[ast.stmt], names: Collection[str], line: int, held: int | None) -> int | None:
    for each in body:
        if line > (each.end_lineno or each.lineno):
            held = _after(each, names, held)
        elif line >= each.lineno:
            return _inside(each, names, line, held)
        else:
            break
    return held


def _inside(each: ast.stmt, names: Collection[str], line: int, held: int | None) -> int | None:
    """At a line of this very statement."""
    if isinstance(each, _LOOPS) and _calls(each, names, "release"):
        held = None
    if isinstance(each, ast.If) and _covers(each.body, line) and _calls(each.test, names, "acquire"):
        held = each.lineno if not isinstance(each.test, ast.UnaryOp | ast.BoolOp) else held
    if isinstance(each, ast.Try) and not _covers(each.body, line):
        released = any(_calls(part, names, "release") for part in (*each.body, *each.handlers, *each.orelse))
        held = None if released else _all(each.body, names, held) if _covers(each.orelse, line) else held
    for part in _bodies(each):
        if _covers(part, line):
            return _at(part, names, line, held)
    return held


def _after(each: ast.stmt, names: Collection[str], held: int | None) -> int | None:
    """When this statement is over."""
    if isinstance(each, _SCOPES):
        return held
    if isinstance(each, ast.With | ast.AsyncWith):
        return _all(each.body, names, held)
    if _calls(each, names, "release"):
        return None
    if isinstance(each, ast.If) and _is_refused(each.test, names) and isinstance(each.body[-1], _LEAVES):
        return each.lineno
    if isinstance(each, ast.Expr | ast.Assign | ast.AnnAssign | ast.Assert):
        for call in _calls(each, names, "acquire"):
            if isinstance(each, ast.Assert) or _is_certain(call):
                return each.lineno
    return held


def _all(body: Sequence[ast.stmt], names: Collection[str], held: int | None) -> int | None:
    for each in body:
        held = _after(each, names, held)
    return held


def _is_refused(test: ast.expr, names: Collection[str]) -> bool:
    """`not lock.acquire(...)`"""
    return (
        isinstance(test, ast.UnaryOp)
        and isinstance(test.op, ast.Not)
        and isinstance(test.operand, ast.Call)
        and any(call is test.operand for call in _calls(test, names, "acquire"))
    )


def _is_certain(call: ast.Call) -> bool:
    """It returns with the lock or not at all."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return not values or (len(values) == 1 and isinstance(values[0], ast.Constant) and values[0].value is True)


def _calls(within: ast.AST, names: Collection[str], method: str) -> list[ast.Call]:
    return [
        node
        for node in _own(within)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        and _dotted(node.func.value) in names
    ]


def _dotted(node: ast.expr) -> str:
    """ "self._lock"; "" for anything but names with dots between."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join((node.id, *reversed(names))) if isinstance(node, ast.Name) else ""


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """This node and those below it, those of functions in it left out. An expression can be deep: no recursion."""
    left = [node]
    while left:
        each = left.pop()
        yield each
        left.extend(child for child in ast.iter_child_nodes(each) if not isinstance(child, _SCOPES))


def _bodies(each: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        part = getattr(each, name, None)
        if isinstance(part, list) and part:
            yield part
    for handler in (*getattr(each, "handlers", ()), *getattr(each, "cases", ())):
        yield handler.body


def _covers(body: Sequence[ast.stmt], line: int) -> bool:
    return bool(body) and body[0].lineno <= line <= (body[-1].end_lineno or body[-1].lineno)
