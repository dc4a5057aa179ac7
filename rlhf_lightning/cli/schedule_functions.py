"""Schedule functions in a config: `lr_scheduler: {class_path: transformers.get_cosine_schedule_with_warmup, init_args: {…}}`.

A config names classes, so that each function of an optimizer becomes a `ScheduleFunction`, and torch's SequentialLR, whose
schedules need an optimizer, a `SequentialSchedule`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KEY = "lr_scheduler"
CLASSES = "rlhf_lightning.training.schedules"
FUNCTION, SEQUENCE = f"{CLASSES}.ScheduleFunction", f"{CLASSES}.SequentialSchedule"
SEQUENTIAL = ("SequentialLR", "torch.optim.lr_scheduler.SequentialLR", "SequentialSchedule", SEQUENCE)


def with_schedule_classes(config: Any) -> Any:
    """Return a config whose schedule functions are arguments of classes.

    >>> schedule = {"class_path": "my.schedule", "init_args": {"warmup": 2}}
    >>> with_schedule_classes({"lr_scheduler": schedule})["lr_scheduler"]["init_args"]
    {'function': 'my.schedule', 'arguments': {'warmup': 2}}
    """
    if isinstance(config, dict):
        return {key: _schedule(value) if key == KEY else with_schedule_classes(value) for key, value in config.items()}
    return [with_schedule_classes(each) for each in config] if isinstance(config, list) else config


def _schedule(value: Any) -> Any:
    name = value.get("class_path") if isinstance(value, dict) else value
    arguments = dict(value.get("init_args") or {}) if isinstance(value, dict) else {}
    if name in SEQUENTIAL:
        inner = arguments.get("schedulers")
        schedules = {"schedulers": [_schedule(each) for each in inner]} if isinstance(inner, list) else {}
        return {"class_path": SEQUENCE, "init_args": {**arguments, **schedules}}
    if isinstance(name, str) and "." in name and name.rpartition(".")[-1][:1].islower():
        return {"class_path": FUNCTION, "init_args": {"function": name, "arguments": arguments}}
    return value


def replace_schedule_words(
    words: Sequence[str], config: dict[str, Any], load: Callable[[Path], dict[str, Any]]
) -> list[str]:
    """Replace configs and options of a command line that name a schedule function by configs that name its class.

    Args:
        words: of a command line, with the paths of configs.
        config: the words and their configs merged, with the functions that they name.
        load: reads a config file.
    """
    given = config.get("model")
    given = (given.get("init_args", given) or {}) if isinstance(given, dict) else {}
    schedule = given.get(KEY)
    replaced = _schedule(schedule) != schedule
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        has_value = bool(not equals and rest and not rest[0].startswith("--"))
        if replaced and flag.lstrip("-").split(".")[:2] == ["model", KEY]:
            del rest[: int(has_value)]
        elif flag in ("--config", "-c") and (equals or has_value):
            path = value if equals else rest.pop(0)
            content = load(Path(path))
            rewritten = with_schedule_classes(content)
            same = [word] if equals else [word, path]
            result += same if rewritten == content else ["--config", json.dumps(rewritten)]
        else:
            result.append(word)
    if replaced:
        result += ["--config", json.dumps({"model": {"init_args": {KEY: _schedule(schedule)}}})]
    return result
