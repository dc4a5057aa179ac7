"""Open Assistant's conversations: trees of messages, also as rows of one message each."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.messages import BadRow, UnusedRow
from rlhf_lightning.data.tables import Source

Row = dict[str, Any]
COLUMNS = ("message_id", "parent_id", "text", "role")
DEPTH = 200
"""Messages of a conversation at most; a longer one is a cycle, or no conversation."""


def is_tree(row: Row) -> bool:
    """Tell whether `prompt` holds a message with replies."""
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt and "text" in prompt


def trees(rows: list[Row], places: list[str]) -> tuple[list[Row], list[str], list[str]]:
    """Join rows of one message each into trees.

    Args:
        rows: with message_id, parent_id, text and role.
        places: where each was read.

    Returns:
        Trees, the place of the root of each, and a fault for each message whose parent is missing.
    """
    nodes = [{**row, "replies": []} for row in rows]
    known = {str(node.get("message_id")): node for node in nodes}
    roots, found, faults = [], [], []
    for node, place in zip(nodes, places, strict=True):
        parent = node.get("parent_id")
        if parent in (None, ""):
            roots.append({"prompt": node})
            found.append(place)
        elif str(parent) in known and known[str(parent)] is not node:
            known[str(parent)]["replies"].append(node)
        else:
            faults.append(f"{place}: the message's parent {parent!r:.60} is not in the file")
    return roots, found, faults


def _message(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict) or not isinstance(node.get("text"), str) or not isinstance(node.get("role"), str):
        raise BadRow("column 'prompt' is a tree with a message without text and role")
    return {"role": node["role"], "content": node["text"]}


def _replies(node: Row) -> list[Row]:
    """The replies that are not deleted, the best first; those without a rank come last."""
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("column 'prompt' is a tree whose replies are no list of messages")
    kept = [reply for reply in replies if not reply.get("deleted")]
    return sorted(kept, key=_rank)


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, int | float) and rank == rank else 1e9


def root_prompt(row: Row) -> list[Row]:
    """The first message of a tree."""
    return [_message(row["prompt"])]


def best_path(row: Row) -> list[Row]:
    """Follow the best reply to each message, up to the last of the assistant.

    Raises:
        UnusedRow: nobody answered.
    """
    node, path = row["prompt"], [_message(row["prompt"])]
    while replies := _replies(node):
        node = replies[0]
        path.append(_message(node))
        if len(path) > DEPTH:
            raise BadRow(f"column 'prompt' is a tree of more than {DEPTH} messages in a row")
    while path and path[-1]["role"].lower() not in ("assistant", "gpt"):
        path.pop()
    if not path:
        raise UnusedRow("a message without an answer")
    return path


def compared_replies(row: Row) -> list[Row]:
    """Make a pair, the best and the worst reply, of each message of a tree with two replies of different rank.

    Raises:
        UnusedRow: there is none.
    """
    rest = {name: x for name, x in row.items() if name != "prompt"}
    found: list[Row] = []
    waiting = [(row["prompt"], [_message(row["prompt"])])]
    while waiting:
        node, path = waiting.pop()
        if len(path) > DEPTH:
            raise BadRow(f"column 'prompt' is a tree of more than {DEPTH} messages in a row")
        replies = _replies(node)
        ranked = [reply for reply in replies if _rank(reply) < 1e9]
        if (
            len(ranked) > 1
            and _rank(ranked[0]) < _rank(ranked[-1])
            and str(ranked[0].get("role")).lower() == "assistant"
        ):
            best, worst = _message(ranked[0]), _message(ranked[-1])
            found.append({**rest, "prompt": path, "chosen": [best], "rejected": [worst]})
        waiting += [(reply, [*path, _message(reply)]) for reply in reversed(replies)]
    if not found:
        raise UnusedRow("no message with two ranked answers")
    return found


def joined(source: Source) -> Source:
    """Return the source without columns of nulls; rows of one message each, as Open Assistant has them, become trees."""
    filled = {name for row in source.rows for name, value in row.items() if value is not None}
    rows = [{name: value for name, value in row.items() if name in filled} for row in source.rows]
    source = Source(source.name, rows, source.places, source.faults)
    if rows and set(COLUMNS) - {"parent_id"} <= filled and "parent_id" in source.rows[0].keys() | filled:
        found, places, faults = trees(rows, source.places)
        return Source(source.name, found, places, source.faults + faults)
    return source
