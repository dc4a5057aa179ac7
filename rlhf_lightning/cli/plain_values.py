"""The check of the plain values of a config: what no option takes is refused before anything reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rlhf_lightning.bounded_yaml import MAX_DEPTH, beyond_limits
from rlhf_lightning.errors import UserError, check_seed, shown

MAX_INTEGER = 2**63 - 1
MAX_DIGITS = 4000
TRAINER_MINIMA = {
    "gradient_clip_val": 0,
    "max_epochs": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "max_steps": -1,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "limit_predict_batches": 0,
    "overfit_batches": 0,
    "val_check_interval": 0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "accumulate_grad_batches": 1,
    "reload_dataloaders_every_n_epochs": 0,
    "num_nodes": 1,
}
"""Numbers of the trainer and the least that has a meaning; Lightning takes some below it and does something else."""
SECTIONS = {"model": "PolicyStage", "data": "PromptData"}
TEXTS = ("ckpt_path", "trainer.default_root_dir")
"""Keys whose values are read as text before jsonargparse has checked their type."""


def check_plain_values(config: dict[str, Any]) -> None:
    """Refuse a merged config with a value that no option takes.

    Raises:
        UserError: naming the key, the value and why it is refused.
    """
    for path, value in _walk(config, ""):
        if fault := _fault(path, value):
            raise UserError(f"{path or 'a key'} {fault}")
    for section, example in SECTIONS.items():
        given = config.get(section)
        if isinstance(given, dict) and given and "class_path" not in given:
            raise UserError(
                f"{section} has arguments and no class; pass a whole config before, as in --config ppo.yaml, or set "
                f"{section}.class_path, for example to {example}"
            )
    check_seed("seed_everything", config.get("seed_everything"))
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    for name, least in TRAINER_MINIMA.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise UserError(f"trainer.{name} is {value}; set it to a number from {least} on")


def check_words(words: list[str]) -> None:
    """Refuse words of a command line that are no text, or a key that is nested without end.

    Raises:
        UserError: naming the word.
    """
    for word in words:
        flag, _, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if fault := _text_fault(flag) or _text_fault(value):
            raise UserError(f"the argument {shown(word)} {fault}")
        key = word.partition("=")[0]
        if word.startswith("--") and key.count(".") > MAX_DEPTH:
            raise UserError(f"the argument {shown(word)} has more than {MAX_DEPTH} nested keys; remove some")


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value under its key."""
    yield path, node
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{path}.{name}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, path)


def _fault(path: str, value: Any) -> str | None:
    if isinstance(value, dict):
        return _mapping_fault(value)
    if isinstance(value, str):
        fault = _text_fault(value)
        return f"is {shown(value)}, which {fault}" if fault else None
    if path in TEXTS and value is not None:
        return f"is {shown(value)}; set it to a path"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"is a number of about {value.bit_length() * 0.30103:.0f} digits; set it to one below 2**63"
    if value is not None and not isinstance(value, bool | int | float | list):
        return f"is {shown(value)}; set it to text, a number, true, false, null, a list or a mapping"
    return None


def _mapping_fault(value: dict[Any, Any]) -> str | None:
    name: Any
    for name in value:
        if not isinstance(name, str | int) or isinstance(name, bool):
            return f"has the key {shown(name)}, which is no text; put it into quotes"
        if isinstance(name, str) and (fault := _text_fault(name)):
            return f"has the key {shown(name)}, which {fault}"
    name, arguments = value.get("class_path", ""), value.get("init_args")
    if not isinstance(name, str):
        return f"has the class_path {shown(name)}; set it to the name of a class"
    if not isinstance(arguments, dict | None):
        return f"has init_args {shown(arguments)}; set them to a mapping of arguments"
    return None


def _text_fault(text: str) -> str | None:
    if problem := beyond_limits(text):  # jsonargparse reads text as YAML, and its parser crashes on deep nesting
        return f"cannot be read as YAML: {problem}"
    if len(text) > MAX_DIGITS and text.lstrip("+-").isdigit():  # which Python refuses to convert
        return f"is a number of {len(text)} digits; set it to one below 2**63"
    if "\0" in text:
        return "has a NUL character; remove it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not UTF-8 text (character {error.start + 1}); rename the file or fix the text"
    return None
