"""Find the checkpoint that `--ckpt_path` names: `last` is the newest complete one of a run's folder."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.run.checkpoint_integrity import damage, remedy
from rlhf_lightning.run.folder import is_first_process


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest complete checkpoint of a folder, and describe each newer one, which cannot be read, in a line."""
    lines: list[str] = []
    for path in newest_first(folder):
        fault = damage(path)
        if fault is None:
            return path, lines
        lines.append(f"checkpoint {path} is {fault}; trying the one before")
    return None, lines


def newest_first(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """List the checkpoints of a folder without links, the newest first; an earlier run may have reached a later step."""
    paths = [path for path in folder.glob(pattern) if not path.is_symlink()]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def refuse_damaged(path: Path) -> None:
    """Refuse a checkpoint that is damaged, or of an earlier version.

    Raises:
        UserError: it cannot be read; the message names a complete one beside it.
    """
    fault = damage(path)
    if fault is None:
        return
    complete = [
        other.name for other in newest_first(path.parent) if other.resolve() != path.resolve() and not damage(other)
    ]
    hint = f"pass {complete[0]} beside it, which is complete" if complete else remedy(fault)
    raise UserError(f"checkpoint {path} is {fault}; {hint}")


LIGHTNING_NAMES = re.compile(r"last|best|hpc|registry(:.*)?")
"""Values of `ckpt_path` that are no paths."""


def check_checkpoint(name: str | None) -> None:
    """Refuse a checkpoint that is missing or damaged.

    Raises:
        UserError: naming the nearest checkpoint beside it.
    """
    if name is None or LIGHTNING_NAMES.fullmatch(name) or "://" in name:
        return
    if Path(name).exists():
        refuse_damaged(Path(name))
        return
    beside = [path.name for path in Path(name).parent.glob("*.ckpt")]
    hint = nearest(Path(name).name, beside) if beside else "pass the path of a .ckpt file, or `last`"
    raise UserError(f"checkpoint {name} does not exist; {hint}")


def resolve_last(folder: Path, subcommand: str) -> Path | None:
    """Find the newest complete checkpoint of a run; print a line about each newer one that is damaged.

    Returns:
        The path; None if there is none, so that training starts from scratch.

    Raises:
        UserError: there is none, and the subcommand measures a checkpoint.
    """
    path, lines = newest_complete(folder / "checkpoints")
    if path is None and subcommand != "fit":
        raise UserError(f"--ckpt_path last: no complete checkpoint in {folder}")
    if is_first_process():
        for line in [*lines, *([] if path else [f"no checkpoint in {folder} yet: starting from scratch"])]:
            print(line, flush=True)
    return path


def resolve_best(folder: Path, subcommand: str) -> Path | None:
    """Find the best checkpoint of a run, as its ModelCheckpoint noted it in the newest one.

    Raises:
        UserError: the run has no ModelCheckpoint that monitors a metric, or its best checkpoint is gone or damaged.
    """
    from rlhf_lightning.run.run_options import read_without_tensors

    newest = resolve_last(folder, "validate")
    assert newest is not None
    content = read_without_tensors(newest)
    states = content.get("callbacks", {}).items()
    found = [
        state["best_model_path"]
        for key, state in states
        if key.startswith("ModelCheckpoint") and state["best_model_path"]
    ]
    if not found:
        raise UserError(
            f"--ckpt_path best: the run in {folder} has no ModelCheckpoint that monitors a metric; pass last, or the path of a "
            "checkpoint"
        )
    path = next(
        (path for path in (Path(found[0]), newest.parent / Path(found[0]).name) if path.exists()), Path(found[0])
    )
    check_checkpoint(str(path))
    return path
