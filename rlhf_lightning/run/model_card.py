"""`README.md` of an export: what the model is made of, what it was measured to do, and the command that made it."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning import __version__
from rlhf_lightning.io import atomic_write
from rlhf_lightning.run.summary import Summary

LICENCE_KEYS = ("license", "licence")
NOT_STATED = "not stated"


class ModelCard(Callback):
    """Put a model card into every export of a run.

    Args:
        words: of the command line, with the subcommand first; the card has them as the user typed them, and none of a run that
            was started from Python. Without `--ckpt_path last`: a resumed run has the card of the uninterrupted one.
    """

    def __init__(self, words: Sequence[str] | None = None) -> None:
        typed = sys.argv[1:]
        self.words = _uninterrupted(typed) if words and typed[:1] == list(words[:1]) else None

    def write_model_card(
        self, trainer: Trainer, stage: LightningModule, folder: Path, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save the card of an export.

        Args:
            trainer: of the run.
            stage: whose model is exported.
            folder: of the export.
            metrics: held-out metrics of the exported weights, without `val/`; by default those of the last validation.
        """
        summary = next((each for each in trainer.callbacks if isinstance(each, Summary)), None)  # type: ignore[attr-defined]
        before, after = (summary.before, summary.after) if summary else ({}, {})
        if metrics is not None:
            after = {f"val/{name}": value for name, value in metrics.items()}
            before = before or after
        path = Path(trainer.default_root_dir) / "config.yaml"
        config = path.read_text(encoding="utf-8") if path.is_file() else ""
        text = model_card(config, self.words, before, after, trainer.global_step)
        atomic_write(folder / "README.md", lambda partial: partial.write_text(text, encoding="utf-8"))


def model_card(
    config: str,
    words: Sequence[str] | None,
    before: Mapping[str, float],
    after: Mapping[str, float],
    step: int,
) -> str:
    """Format a model card in the form of the Hugging Face hub.

    Args:
        config: the text of `config.yaml`.
        words: of the command line, behind `python -m rlhf_lightning`; None where there was none.
        before: held-out metrics at the start.
        after: held-out metrics of the model.
        step: optimiser steps that it was trained for.
    """
    import yaml

    values = yaml.safe_load(config) or {}
    stage = values.get("model") or {}
    options = stage.get("init_args") or {}
    base = ((options.get("policy") or options.get("model") or {}) or {}).get("name_or_path")
    algorithm = _short_name((options.get("algorithm") or {}).get("class_path"))
    kind = algorithm or _short_name(stage.get("class_path")) or "a stage"
    sources = list(data_sources(values.get("data") or {}))
    header: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["rlhf_lightning", *([algorithm] if algorithm else [])],
    }
    if base and not Path(base).expanduser().exists() and not base.startswith("playground/"):
        header["base_model"] = base
    if hub := [name for name, digest, _ in sources if not digest]:
        header["datasets"] = hub
    blocks = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# Model trained with {kind}",
        f"rlhf_lightning {__version__} trained this model for {step} optimiser steps with {kind} "
        f"({_short_name(stage.get('class_path')) or 'a stage'}), starting from {f'`{base}`' if base else 'random weights'}.",
        "## Command",
        f"```bash\n{_command(words)}\n```",
        "## Data",
        _table(["source", "SHA-256", "licence"], [[f"`{a}`", f"`{b}`" if b else "", c] for a, b, c in sources])
        if sources
        else "The config names no data file.",
    ]
    if after:
        rows = [
            [f"`{name}`", _number(before.get(name)), _number(after.get(name))] for name in sorted({*before, *after})
        ]
        blocks += ["## Held-out metrics", _table(["metric", "before", "after"], rows)]
    blocks += ["## Config", f"````yaml\n{config.rstrip()}\n````"]
    return "\n\n".join(blocks) + "\n"


def data_sources(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, SHA-256 and licence of the files and data sets of a config's `data`; the digest of a hub name is empty."""
    options = data.get("init_args") or {}
    seen = set()
    for key in ("train", "validation", "test"):
        for name in _names(options.get(key)):
            if name in seen:
                continue
            seen.add(name)
            path = Path(name).expanduser()
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            found = [each for each in files if each.is_file()]
            if found:
                yield from ((str(each), _digest(each), licence_of(each)) for each in found)
            else:
                yield name, "", "see its page"


def licence_of(path: Path) -> str:
    """Return what the folder of a data file says about its licence: its data card, or the first line of its licence file."""
    import yaml

    card = path.parent / "README.md"
    if card.is_file() and (text := card.read_text(encoding="utf-8", errors="replace")).startswith("---\n"):
        try:
            fields = yaml.safe_load(text[4:].partition("\n---")[0])
        except yaml.YAMLError:
            fields = None
        if isinstance(fields, dict):
            stated = next((fields[key] for key in LICENCE_KEYS if fields.get(key)), None)
            if stated is not None:
                return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        if (path.parent / name).is_file():
            lines = (path.parent / name).read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in lines if line.strip()), NOT_STATED)[:100]
    return NOT_STATED


def _names(value: Any) -> list[str]:
    """Return the sources of one key: a name, a list of names, or a mapping with `path` or `name`."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [name for each in value for name in _names(each)]
    if isinstance(value, Mapping):
        return [name for key in ("path", "name", "source") for name in _names(value.get(key))]
    return []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _uninterrupted(words: Sequence[str]) -> list[str]:
    """Remove `--ckpt_path last` from a command line."""
    text = "\0".join(words).replace("--ckpt_path\0last", "--ckpt_path=last")
    return [word for word in text.split("\0") if word != "--ckpt_path=last"]


def _command(words: Sequence[str] | None) -> str:
    if words is None:
        return "python -m rlhf_lightning fit --config config.yaml  # the config below; the run was started from Python"
    return f"python -m rlhf_lightning {shlex.join(words)}"


def _short_name(path: Any) -> str:
    return str(path or "").rpartition(".")[2]


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
