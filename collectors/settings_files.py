"""What a module of settings sets, as its file says: parsed, never run.

Only what is assigned at the top level of the module counts, unconditionally; a value that is not written out there is
`COMPUTED`. A name that the file changes in another way (a method call, `del`, an augmented assignment) is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stucktrace.facts.settings import COMPUTED

CONFIGURE = "config_from_object"


@dataclass(frozen=True)
class Assigned:
    """One setting that a file sets."""

    name: str
    line: int
    value: Any
    """A literal; a dict has COMPUTED for each value that is not one."""
    inside: str = ""
    """The dict that it is a key of."""
    owner: str = ""
    """The name of the application whose `conf` it is set on."""
    conditional: bool = False
    """It stands under `if` or `try`: no evidence of anything but that the name may have changed."""


@dataclass(frozen=True)
class Import:
    module: str
    level: int
    line: int
    names: tuple[str, ...]
    """What is imported from it; ("*",) for everything."""

    @property
    def star(self) -> bool:
        return "*" in self.names


@dataclass(frozen=True)
class Parsed:
    assigned: tuple[Assigned, ...] = ()
    """In the order of the file."""
    imports: tuple[Import, ...] = ()
    """`from module import names`, also inside `try` and `if`."""
    configures: tuple[str, ...] = ()
    """What `app.config_from_object` is given as text."""


def parse(text: bytes, wanted: Collection[str]) -> Parsed:
    """Of a file that is no Python, nothing."""
    try:
        module = ast.parse(text)
        statements = [*_statements(module.body, conditional=False)]
        assigned = [
            replace(each, conditional=conditional)
            for statement, conditional in statements
            for each in _assigned(statement, wanted)
        ]
        names = {each.inside or each.name for each in assigned if not each.owner}
        touched = {name for statement, _ in statements for name in _touched(statement, names)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Parsed()
    imports = tuple(
        Import(node.module or "", node.level, node.lineno, tuple(alias.name for alias in node.names))
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
    )
    configures = tuple(name for statement in module.body if (name := _configured(statement)))
    plain = tuple(each for each in assigned if each.owner or (each.inside or each.name) not in touched)
    return Parsed(plain, imports, configures)


def _statements(body: Sequence[ast.stmt], *, conditional: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements of a module with those under its `if` and `try`, and whether it is one of the latter."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield ast.Expr(statement.test), True
            yield from _statements([*statement.body, *statement.orelse], conditional=True)
        elif isinstance(statement, ast.Try):
            handled = [each for handler in statement.handlers for each in handler.body]
            within = [*statement.body, *handled, *statement.orelse, *statement.finalbody]
            yield from _statements(within, conditional=True)
        else:
            yield statement, conditional


def module_of(importer: str, is_package: bool, named: str, level: int) -> str:
    """The full name of what `from ..named import *` in `importer` imports."""
    if not level:
        return named
    parts = importer.split(".")
    kept = parts[: len(parts) - level + (1 if is_package else 0)]
    return ".".join([*kept, *([named] if named else [])])


def _assigned(statement: ast.stmt, wanted: Collection[str]) -> Iterator[Assigned]:
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        yield from _updated(statement, wanted)
        return
    found, line = literal(value), statement.lineno
    for target in targets:
        if isinstance(target, ast.Name) and target.id in wanted:
            yield Assigned(target.id, line, found)
        elif isinstance(target, ast.Name) and isinstance(found, dict):
            yield from (Assigned(key, line, held, target.id) for key, held in found.items() if key in wanted)
        elif isinstance(target, ast.Attribute) and target.attr in wanted and (owner := _owner(target.value)):
            yield Assigned(target.attr, line, found, owner=owner)


def _updated(statement: ast.stmt, wanted: Collection[str]) -> Iterator[Assigned]:
    """`app.conf.update(...)`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "update":
        given = {word.arg: literal(word.value) for word in call.keywords if word.arg}
        for table in map(literal, call.args):
            given.update(table if isinstance(table, dict) else {})
        if owner := _owner(call.func.value):
            yield from (
                Assigned(key, statement.lineno, held, owner=owner) for key, held in given.items() if key in wanted
            )


def _owner(node: ast.expr) -> str:
    """ "app" of `app.conf`."""
    plain = isinstance(node, ast.Attribute) and node.attr == "conf" and isinstance(node.value, ast.Name)
    return node.value.id if plain else ""  # type: ignore[attr-defined]


def _touched(statement: ast.stmt, wanted: Collection[str]) -> Iterator[str]:
    """Names that this statement may change in a way that is not understood."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        inside = [node for target in targets if not isinstance(target, ast.Name) for node in ast.walk(target)]
        yield from (node.id for node in inside if isinstance(node, ast.Name) and node.id in wanted)
        return
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return
    # A name that is stored, deleted, called upon or handed to a call.
    yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id in wanted)


def _configured(statement: ast.stmt) -> str:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != CONFIGURE:
        return ""
    given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "obj")]
    return next((each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)), "")


def literal(node: ast.expr) -> Any:
    """The value of what is written out; a dict, also `dict(key=value)`, value by value; COMPUTED for anything else."""
    if isinstance(node, ast.Dict):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        plain = len(keys) == len(node.keys)
        return {key: literal(value) for key, value in zip(keys, node.values, strict=True)} if plain else COMPUTED
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: literal(word.value) for word in node.keywords if word.arg} if _named(node) else COMPUTED
    try:
        return ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return COMPUTED


def _named(call: ast.Call) -> bool:
    return all(word.arg for word in call.keywords)


def final(parsed: Parsed, assigned: Assigned) -> Assigned:
    """The last word of this file on a name: `assigned`, or what follows it."""
    name = assigned.inside or assigned.name
    last = next(each for each in reversed(parsed.assigned) if (each.inside or each.name) == name)
    return assigned if last.line == assigned.line else last


def by_name(assigned: Collection[Assigned], spellings: Mapping[str, str]) -> Iterator[tuple[str, Assigned]]:
    """(setting, what is certainly assigned to it); `spellings`: how a setting is written -> its name."""
    return ((spellings[each.name], each) for each in assigned if each.name in spellings and not each.conditional)
