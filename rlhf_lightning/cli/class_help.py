"""Help of a class that is an option of a stage, without a config that names the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.cli.known_schema import load_schema

STAGES = ("PolicyStage", "SupervisedStage", "RewardStage")
"""In this order: an option that several have is described by the first."""


def with_stage(words: Sequence[str], given: dict[str, Any]) -> list[str]:
    """Add the stage that has the option of `--model.OPTION.help CLASS`.

    Args:
        words: of the command line; the first is the subcommand.
        given: the merged config, options of the command line included.

    Returns:
        The words, with `--model=STAGE` behind the first one where nothing else names the stage.
    """
    flags = (word.partition("=")[0] for word in words)
    option = next((flag.split(".")[1] for flag in flags if flag.startswith("--model.") and flag.endswith(".help")), "")
    model = given.get("model")
    named = isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)
    if named or option in ("", "help"):
        return list(words)
    schema = load_schema()
    members = schema.members(schema.definitions["LightningModule"])
    stage = next((name for name in STAGES if option in members[name]["properties"]), None)
    return [words[0], *([f"--model={stage}"] if stage else []), *words[1:]]
