"""YAML with limits: no alias inside its own anchor, no aliases that multiply, no nesting or number without end."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
"""Values of a document, each alias counted as its whole content."""
MAX_DEPTH = 60
LETTERS_PER_NODE = 500
"""A longer text counts as several values, so that aliases of long texts are limited as well."""
SCANNER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BeyondLimitsError(yaml.MarkedYAMLError):
    """Report a document that is too large, too deep, or without end."""


def beyond_limits(text: str) -> str | None:
    """Say why a text would be beyond the limits if it were read as YAML; None if it is not, or no YAML.

    >>> beyond_limits("[" * 100)
    'values are nested more than 60 deep'
    """
    if len(text) <= MAX_DEPTH:
        return None
    try:
        check(text)
    except BeyondLimitsError as error:
        return error.problem
    except yaml.YAMLError:
        pass
    return None


class UniqueKeys(yaml.SafeLoader):
    """Refuses a duplicate key, of which YAML would keep the last with everything under it; a date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as in yaml)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise _refusal(f"the key {key.value!r} is duplicate; remove one", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a value; one that Python refuses, as a number of 5,000 digits, is a fault of its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, TypeError) as error:
            raise _refusal(f"a value cannot be read ({error})", node.start_mark) from error


def load(text: str) -> Any:
    """Read a document.

    Raises:
        yaml.YAMLError: it is not valid, or beyond the limits.
    """
    check(text)
    return yaml.load(text, UniqueKeys)


def check(text: str) -> None:
    """Refuse a document beyond the limits, without building it.

    Raises:
        yaml.YAMLError: it is not valid, or beyond the limits.
    """
    if len(text) > MAX_CHARACTERS:
        raise BeyondLimitsError(None, None, f"it has {len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        _check_events(text)
    except UnicodeError as error:
        raise yaml.YAMLError(f"it has half of a surrogate pair (character {getattr(error, 'start', 0)})") from error


def _check_events(text: str) -> None:
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str, int]] = []  # anchor, and values before it
    count = 0
    events: Any = yaml.parse(text, SCANNER)  # types of two modules, of libyaml and of yaml
    for event in events:
        mark, name = event.start_mark, getattr(event, "anchor", None) or ""
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == name for anchor, _ in open_nodes):
                raise BeyondLimitsError(None, None, f"the alias *{name} is inside its own anchor; remove it", mark)
            count += sizes.get(name, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // LETTERS_PER_NODE
            count += size
            sizes[name] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((name, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise BeyondLimitsError(None, None, f"values are nested more than {MAX_DEPTH} deep", mark)
        if count > MAX_NODES:
            raise BeyondLimitsError(None, None, f"it has more than {MAX_NODES} values, aliases included", mark)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)
