"""What becomes of an option that differs between a run and the run that resumes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from rlhf_lightning.errors import UserError, nearest


class OnChange(Enum):
    """What happens to a changed option; all three leave config.yaml true."""

    FREE = "takes effect"
    NAMED = "takes effect if --allow_change names it"
    FIXED = "is refused"


FREE, NAMED, FIXED = OnChange.FREE, OnChange.NAMED, OnChange.FIXED
TRAINER = {
    FREE: (
        "accelerator barebones benchmark callbacks check_val_every_n_epoch default_root_dir detect_anomaly deterministic devices "
        "enable_autolog_hparams enable_checkpointing enable_model_summary enable_progress_bar inference_mode "
        "limit_predict_batches limit_test_batches limit_val_batches log_every_n_steps logger max_epochs max_steps max_time "
        "min_epochs min_steps model_registry num_nodes num_sanity_val_steps plugins profiler strategy sync_batchnorm "
        "reload_dataloaders_every_n_epochs use_distributed_sampler val_check_interval"
    ),
    NAMED: "gradient_clip_algorithm gradient_clip_val",
    FIXED: "accumulate_grad_batches fast_dev_run limit_train_batches overfit_batches precision",
}
MODEL = {
    FREE: "gradient_checkpointing max_tokens_per_batch pack trust_remote_code",
    NAMED: "attention name_or_path tokenizer",
    FIXED: "chat_template config dtype lora new_tokens pad_token quantization seed stop_tokens",
}
"""Of a model that is trained."""
STAGE = {
    FREE: "calibrate max_tokens_per_batch on_nonfinite on_unscored predict_responses predict_score predict_temperature",
    NAMED: "optimizer",
    FIXED: (
        "algorithm centering class_path completion_only correction critic evaluation_rewards freeze_backbone generation heads "
        "iterations lr_scheduler margin max_length max_prompt_length objective overlap reference reward share_base text"
    ),
}
"""An option of the stage, with all options of the plug-in that it holds, unless they have an entry of their own."""
OPTIMIZER = {FIXED: "amsgrad capturable centered class_path differentiable foreach fused momentum"}
"""Options that decide which state an optimizer keeps, which a checkpoint does not hold for another value."""
DATA = {
    FREE: "num_workers predict test validation_batch_size",
    NAMED: "train validation",
    FIXED: (
        "bad_to batch_size chat_template_kwargs class_path columns good_from limit mix on_bad_row on_too_long remove_columns "
        "seed shuffle_buffer size steps_per_epoch streaming tools validation_fraction validation_size"
    ),
}


def _entries(options: Mapping[OnChange, str], *prefixes: str) -> dict[str, OnChange]:
    return {f"{prefix}{name}": kind for kind, names in options.items() for name in names.split() for prefix in prefixes}


TABLE: dict[str, OnChange] = {
    "ckpt_path": FREE,
    "return_predictions": FREE,
    "verbose": FREE,
    "weights_only": FREE,
    "seed_everything": FIXED,
    **_entries(TRAINER, "trainer."),
    **_entries(STAGE, "model."),
    **_entries(MODEL, "model.policy.", "model.model."),
    **_entries(DATA, "data."),
    **_entries(OPTIMIZER, "model.optimizer."),
    "model.generation.max_batch_size": NAMED,
    "model.reward.url": NAMED,
    **{f"model.reward.{name}": FREE for name in ("headers", "timeout", "retries", "backoff")},
}
"""Option of a config, spelled without `init_args`, to what happens when it changes. The entry of the longest prefix counts."""


@dataclass(frozen=True)
class Change:
    """An option that differs."""

    key: str
    before: Any
    now: Any
    step: int = 0
    """Optimizer step from which on the new value counts."""


def entry(key: str) -> OnChange | None:
    """Find the entry of an option: its own, or that of the option that holds it.

    >>> entry("model.algorithm.kl.coef").name, entry("model.optimizer.lr").name
    ('FIXED', 'NAMED')
    """
    words = key.split(".")
    prefixes = (".".join(words[:length]) for length in range(len(words), 0, -1))
    return next((TABLE[prefix] for prefix in prefixes if prefix in TABLE), None)


def flattened(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every option of a config with its value; keys are spelled without `init_args`.

    >>> dict(flattened({"model": {"class_path": "A", "init_args": {"x": 1}}}))
    {'model.class_path': 'A', 'model.x': 1}
    """
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from flattened(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    else:
        yield key, _comparable(config)


def _comparable(value: Any) -> Any:
    """Remove the numbers from the names of objects of a Python session, which count them."""
    text = json.dumps(value, sort_keys=True)
    return json.loads(re.sub(r"(python:[^\"#]*)#\d+|(rlhf_lightning\.session\._Object)\d+", r"\1\2", text))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """List the options that differ; an option that one of two versions of this library does not know is no change."""
    old, new = dict(flattened(before)), dict(flattened(now))
    found = [Change(key, old[key], value) for key, value in new.items() if key in old and old[key] != value]
    return found + _replaced(old, new) + [Change(each.key, each.now, each.before) for each in _replaced(new, old)]


def _replaced(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """List single values, such as null, in whose place is now a group of options."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in new.items():
        words = key.split(".")
        for length in range(1, len(words)):
            if (prefix := ".".join(words[:length])) in old:
                groups.setdefault(prefix, {})[".".join(words[length:])] = value
    return [Change(prefix, old[prefix], group) for prefix, group in groups.items()]


def check_changes(found: Sequence[Change], allowed: Sequence[str], folder: str) -> list[Change]:
    """Refuse changes that would have no effect, or that nobody allowed.

    Args:
        found: all changes.
        allowed: options that may change.
        folder: of the run, whose export a new run can start from.

    Returns:
        The changes that were allowed by name.

    Raises:
        UserError: naming the first option that must not change.
    """
    names = [name.replace(".init_args", "") for name in allowed]
    for change in sorted(found, key=lambda change: not change.key.endswith("class_path")):
        kind = entry(change.key) or FIXED
        if kind is FREE or (kind is NAMED and change.key in names):
            continue
        by_name = f", pass --allow_change {change.key}," if kind is NAMED else ""
        raise UserError(
            f"{change.key} is {_shown(change.now)}, and the run that is resumed has {_shown(change.before)}; set it to "
            f"{_shown(change.before)}{by_name} or start a new run from {folder}/export"
        )
    for name in names:
        if entry(name) is not NAMED:
            known = [key for key, kind in TABLE.items() if kind is NAMED]
            raise UserError(f"--allow_change {name}: it {(entry(name) or FIXED).value}; {nearest(name, known)}")
    return [change for change in found if change.key in names]


def check_end(found: Sequence[Change], step: int, epoch: int) -> None:
    """Refuse an end that the checkpoint is beyond.

    Raises:
        UserError: `max_steps` is below its step, or `max_epochs` below its epoch.
    """
    for name, reached in (("trainer.max_steps", step), ("trainer.max_epochs", epoch + 1)):
        now = next((change.now for change in found if change.key == name), None)
        if isinstance(now, int) and 0 <= now < reached:
            raise UserError(
                f"{name} is {now}, and the checkpoint that is resumed has reached {reached}; set it to {reached} or more, or "
                "pass an earlier checkpoint"
            )


def as_plain(found: Sequence[Change], step: int) -> list[dict[str, Any]]:
    """Return changes as a checkpoint holds them, with the step from which on they count."""
    return [{**asdict(change), "step": step} for change in found]


def _shown(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
