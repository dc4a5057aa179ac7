"""The package speaks the field's language: words with a private meaning are in no name, docstring, comment or message.

CONTRIBUTING.md has the glossary. A pattern is searched in prose, and in the words of every name that the package defines.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TESTS

ROOT = TESTS.parent
FILES = sorted(path for folder in ("rlhf_lightning", "callbacks") for path in (ROOT / folder).rglob("*.py"))

TEXT = r"(responses?|completions?|repl(y|ies)|answers?|tokens?|rollouts?)"
"""What a policy generates; it writes only files."""
GENERATOR = r"(polic(y|ies)|models?|samplers?|critics?|trunks?)"
WHOLE = r"(batch|minibatch|step|rollout|update|epoch)"

EVERYWHERE = {
    r"pieces?": "micro-batch",
    r"bundles?": "shared-prefix group",
    r"dealt": "balanced partition",
    r"credit(s|ed)?": "advantages",
    r"settle[sd]?|settling": "probe capabilities",
    r"trunks?": "backbone",
    r"patience|patient": "retry policy",
    r"remember(s|ed)?": "state fields",
    r"misfits?": "unsupported",
    r"unfinished": "mid-step resume",
    r"soundness": "non-finite",
    r"transcripts?": "decoding state",
    r"luck|lucky": "random numbers",
    r"heat": "temperature",
    r"mend(s|ed|ing)?": "fix",
    r"glances?": "early check",
    r"anew": "start over",
    r"(go|goes|going|gone|went) on": "resume",
    r"left out|leaves? out|leaving out": "skipped",
    r"cuts?|cutting": "truncated, skipped, split",
    r"sees": "attention mask",
}
PROSE = EVERYWHERE | {
    rf"{GENERATOR}( \w+)? (writes?|wrote|writing|written|has written)": "generate",
    rf"{TEXT}( that| which)?( (is|are|was|were|be|been|being))? written(?! (to|into|as|in|by the run)\b)": "generated",
    rf"(writes?|wrote|writing|written) (a |the |its |of |to )?{TEXT}(?! (to|into|as)\b)": "generate",
    r"writers?": "policy, generator",
    r"(draws?|drawn|drew) (a |an |one |its |of |from |by |once|at random|afresh|tokens?|numbers?|uniform)": "sample",
    r"pre-drawn|random draws?": "random numbers",
    rf"parts? of (a|an|the|its|one|each) (\w+ )?{WHOLE}|in parts": "micro-batch",
    r"lines? of (\w+ )?tokens|packed lines?|lines? of a pack": "packed sequence",
    r"(rank|process)('s|es'|s')? (own )?share|own share": "shard",
    r"stands?(?!-)|stood|standing": "is",
    r"lies?|lay|laid|lying": "is",
}
NAMES = EVERYWHERE | {r"written|writers?": "generated"}
BATCH_NAMES = NAMES | {r"parts?": "micro-batch", r"units?": "group", r"draws?|drawn": "sample"}
"""In the rooms that handle batches; elsewhere text has parts and plots are drawn."""
BATCH_ROOMS = {"functional", "models", "algorithms", "rewards", "generation", "rollouts", "training", "stages"}
EXEMPT = {
    ("feedback/", "settle"),  # a disagreement of annotators
    ("feedback/", "settled"),
    ("rewards/rules.py", "unit"),  # of a length, a key of configs
    ("models/kv_cache.py", "write the token"),  # into the cache
}
"""Part of a file's path and matched text."""


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string and comment; an expression inside an f-string is {}."""
    tree = ast.parse(source)
    inside = {id(item) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for item in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts = [str(item.value) if isinstance(item, ast.Constant) else "{}" for item in node.values]
            yield node.lineno, "".join(texts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def names(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and words of every name that the file defines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, split(node.name)
            case ast.arg():
                yield node.lineno, split(node.arg)
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, split(node.id)
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, split(node.attr)


def split(name: str) -> str:
    """Return the words of an identifier: `DecodingState`, `decoding_state` → "decoding state"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", name).strip().lower()


def banned(texts: Iterator[tuple[int, str]], words: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield line, matched text and the better word."""
    patterns = {re.compile(rf"\b({pattern})\b", re.IGNORECASE): better for pattern, better in words.items()}
    for line, text in texts:
        flat = " ".join(text.split())
        for pattern, better in patterns.items():
            yield from ((line, found[0], better) for found in pattern.finditer(flat))


def violations(path: Path) -> list[str]:
    """Return one line per banned word of a file."""
    source = path.read_text()
    in_names = BATCH_NAMES if path.parent.name in BATCH_ROOMS else NAMES
    found = [*banned(prose(source), PROSE), *banned(names(source), in_names)]
    kept = {
        f"{path.relative_to(ROOT)}:{line}: {text!r} → {better}"
        for line, text, better in found
        if not any(place in path.as_posix() and text.lower() == exempt for place, exempt in EXEMPT)
    }
    return sorted(kept)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_word_has_a_private_meaning(path: Path) -> None:
    assert violations(path) == []


def test_file_names_are_the_fields() -> None:
    assert len(FILES) > 50
    assert [*banned(((0, split(path.stem)) for path in FILES), BATCH_NAMES)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""The policy writes a response."""', ["policy writes", "writes a response"]),
        ('"""The responses are written to samples.jsonl."""', []),
        ("raise ValueError(f'a {x} that goes '\n 'on')", ["goes on"]),
        ("x = 1  # the trunk", ["trunk"]),
        ("def f(part): return csv.writer(part.written)", ["part"]),
        ("class PackedBundle: pieces = split()", ["bundle", "pieces"]),
        ("heater = execute(executor, cutoff)", []),
    ],
)
def test_what_is_found(source: str, expected: list[str]) -> None:
    found = [*banned(prose(source), PROSE), *banned(names(source), BATCH_NAMES)]
    assert [text for _, text, _ in found] == expected
