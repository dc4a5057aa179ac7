"""Patterns of Python's syntax tree, written in Python with metavariables. README.md describes the form."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Bindings = dict[str, Any]
"""The identifier of each `$name`, the list of nodes of each `$...name`."""

_METAVARIABLE = re.compile(r"\$(\.\.\.)?(\w+)")
_ONE, _MANY = "METAVARIABLE_", "METAVARIABLES_"
"""`$name` and `$...name` are parsed as Python identifiers that begin like this."""
_NAMESPACES: dict[type, str] = {ast.Attribute: ".", ast.keyword: "=", ast.Constant: '"'}
"""Metavariables of the same name in these nodes and elsewhere are independent: a field and a local may be renamed apart."""
_IGNORED = {"ctx", "kind", "type_comment"}


def parsed(text: str) -> ast.AST:
    """Return the expression or the statement that a text with metavariables is.

    Raises:
        ValueError: The text is not Python, or more than one statement.
    """
    python = _METAVARIABLE.sub(lambda found: (_MANY if found[1] else _ONE) + found[2], text)
    try:
        (statement,) = ast.parse(python).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"pattern is {text!r}, not one expression or statement of Python: {error}") from error
    return statement.value if isinstance(statement, ast.Expr) else statement


def matches(pattern: Any, found: Any, bound: Bindings, namespace: str = "") -> Iterator[Bindings]:
    """Yield the bindings of each way in which a pattern matches a node, a list of nodes or a node's field.

    Args:
        pattern: Node, list of nodes, identifier or constant of the pattern.
        found: Its counterpart in the source.
        bound: Bindings so far; a match agrees with them.
        namespace: That of the node whose field is matched.
    """
    if isinstance(pattern, list):
        if isinstance(found, list):
            yield from _lists(pattern, found, bound)
    elif isinstance(pattern, ast.AST):
        if many := _many(pattern):
            yield from _bind(many, [found], bound) if isinstance(found, ast.AST) else ()
        elif type(pattern) is type(found):
            yield from _fields(pattern, found, [name for name in pattern._fields if name not in _IGNORED], bound)
    elif isinstance(pattern, str) and pattern.startswith(_ONE):
        if isinstance(found, str):
            yield from _bind(namespace + pattern, found, bound)
    elif type(pattern) is type(found) and pattern == found:
        yield bound


def _fields(pattern: ast.AST, found: ast.AST, names: list[str], bound: Bindings) -> Iterator[Bindings]:
    if not names:
        yield bound
        return
    namespace = _NAMESPACES.get(type(pattern), "")
    for more in matches(getattr(pattern, names[0]), getattr(found, names[0]), bound, namespace):
        yield from _fields(pattern, found, names[1:], more)


def _lists(patterns: list[Any], found: list[Any], bound: Bindings) -> Iterator[Bindings]:
    if not patterns:
        if not found:
            yield bound
    elif many := _many(patterns[0]):
        for count in range(len(found) + 1):
            for more in _bind(many, found[:count], bound):
                yield from _lists(patterns[1:], found[count:], more)
    elif found:
        for more in matches(patterns[0], found[0], bound):
            yield from _lists(patterns[1:], found[1:], more)


def _bind(name: str, found: Any, bound: Bindings) -> Iterator[Bindings]:
    if name not in bound or _dump(bound[name]) == _dump(found):
        yield {**bound, name: found}


def _dump(found: Any) -> Any:
    return [ast.dump(node) for node in found] if isinstance(found, list) else found


def _many(pattern: Any) -> str | None:
    """Return the name of a `$...name`, which stands for an expression, a statement, a parameter or a `**keyword`."""
    match pattern:
        case ast.Expr(value=ast.Name(id=name)) | ast.Name(id=name) | ast.arg(arg=name):
            return name if name.startswith(_MANY) else None
        case ast.keyword(arg=None, value=ast.Name(id=name)):
            return name if name.startswith(_MANY) else None
    return None


def filled(replacement: Any, bound: Bindings, namespace: str = "") -> Any:
    """Return a replacement with its metavariables replaced by what they are bound to.

    Raises:
        ValueError: A metavariable is not bound.
    """
    if isinstance(replacement, list):
        return [node for one in replacement for node in _several(one, bound)]
    if isinstance(replacement, ast.AST):
        if _many(replacement):
            (node,) = _several(replacement, bound)
            return node
        namespace = _NAMESPACES.get(type(replacement), "")
        fields = {name: filled(getattr(replacement, name, None), bound, namespace) for name in replacement._fields}
        return type(replacement)(**fields)
    if isinstance(replacement, str) and replacement.startswith(_ONE):
        return _bound(namespace + replacement, bound)
    return replacement


def _several(replacement: Any, bound: Bindings) -> list[Any]:
    many = _many(replacement)
    return _bound(many, bound) if many else [filled(replacement, bound)]


def _bound(name: str, bound: Bindings) -> Any:
    if name not in bound:
        raise ValueError(f"{name.replace(_ONE, '$').replace(_MANY, '$...')} is in the replacement, but in no pattern")
    return bound[name]


@dataclass(frozen=True)
class Source:
    """A module: its text, its nodes by type, and the top-level function, class or other statement around each node."""

    path: Path
    text: str
    nodes: dict[type, list[Any]] = field(repr=False)
    statements: dict[ast.AST, ast.stmt] = field(repr=False)

    @classmethod
    def read(cls, root: Path, path: Path) -> Source:
        """Parse a file below `root`."""
        return cls.of(path.relative_to(root), path.read_text())

    @classmethod
    def of(cls, path: Path, text: str) -> Source:
        """Parse the text of a file."""
        source = cls(path, text, defaultdict(list), {})
        tree = ast.parse(source.text)
        for child in tree.body:
            for node in ast.walk(child):
                source.nodes[type(node)].append(node)
                source.statements[node] = child
        return source

    def replaced(self, node: Any, new: Any) -> str:
        """Return the text with another node in the place of one; nothing else changes."""
        lines = self.text.encode().split(b"\n")
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        start = sum(len(line) + 1 for line in lines[: first - 1]) + node.col_offset
        end = sum(len(line) + 1 for line in lines[: node.end_lineno - 1]) + node.end_col_offset
        python = ast.unparse(ast.fix_missing_locations(new))
        python = f"({python})" if isinstance(node, ast.expr) else python.replace("\n", "\n" + " " * node.col_offset)
        text = self.text.encode()
        return (text[:start] + python.encode() + text[end:]).decode()


@dataclass(frozen=True)
class Change:
    """A pattern, what replaces it, and patterns that the top-level function or class around it contains as well."""

    pattern: str
    replacement: str
    context: tuple[str, ...] = ()

    def places(self, sources: list[Source]) -> list[tuple[Path, int, str]]:
        """Return the file, the line and the changed text of each place; a place that can be bound in two ways counts twice.

        Raises:
            ValueError: A pattern or the replacement is not Python, or a metavariable of the replacement is in no pattern.
        """
        pattern, replacement = parsed(self.pattern), parsed(self.replacement)
        if not isinstance(replacement, ast.expr) and isinstance(pattern, ast.expr):
            pattern = ast.Expr(pattern)
        context = [parsed(one) for one in self.context]
        found = {}
        for source in sources:
            for node in source.nodes[type(pattern)]:
                for bound in matches(pattern, node, {}):
                    for more in _with_context(context, source.statements[node], bound):
                        text = source.replaced(node, filled(replacement, more))
                        found[source.path, node, text] = (source.path, node.lineno, text)
        return list(found.values())


def _with_context(context: list[ast.AST], top: ast.AST, bound: Bindings) -> Iterator[Bindings]:
    if not context:
        yield bound
        return
    for node in ast.walk(top):
        for more in matches(context[0], node, bound):
            yield from _with_context(context[1:], top, more)
