"""`python -m rlhf_lightning loop`: candidates, judgements, reward model, policy, and again."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.loop.config import LoopConfig
    from rlhf_lightning.loop.steps import Stages
    from rlhf_lightning.loop.tree import Tree

HELP = "repeat candidates, judgements, reward model and policy; the same command continues"
TAKES_OVERRIDES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand; all others are keys of the config."""
    parser.add_argument("--config", metavar="NAME", help="options of the loop, such as loop.yaml")
    parser.add_argument("--status", action="store_true", help="print what the rounds gave, write the page, and end")
    parser.add_argument("--folder", type=Path, default=Path("loop"), metavar="DIR", help="state and runs (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Run the loop, from the first step that is not done.

    Raises:
        UserError: the config is bad, which is found before anything starts, or a step cannot be done.
    """
    from rlhf_lightning.loop.tree import Tree

    if options.status:
        return _status(Tree(options.folder), options)
    if options.config is None:
        raise UserError("loop needs a config; pass one, for example: loop --config loop.yaml")
    config, tree = read_config(options.config, options.overrides), Tree(options.folder)
    tree.check_config(config)
    check_page()
    stages = check_stages(config, tree)
    from rlhf_lightning.loop.steps import Loop

    with tree.locked():
        tree.check_config(config)
        tree.save_config(config)
        Loop(tree, config, stages).run()
    return 0


def _status(tree: Tree, options: argparse.Namespace) -> int:
    from rlhf_lightning.loop.page import COLUMNS, loop_page, table
    from rlhf_lightning.loop.tree import write_text

    if options.config is not None or options.overrides:
        raise UserError("--status reads the folder alone; remove --config and its keys")
    if not tree.config.is_file():
        raise UserError(f"there is no loop in {tree.folder}; set --folder to the folder of one")
    rows = [list(COLUMNS), *table(measured := tree.measured())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(tree.next_step())
    write_text(tree.page, loop_page(f"Feedback loop {tree.folder}", measured, tree.next_step()))
    print(tree.page)
    return 0


def read_config(name: str, overrides: Sequence[str]) -> LoopConfig:
    """Read the options of a loop.

    Args:
        name: of the config.
        overrides: words such as --labels 64.

    Raises:
        UserError: the config is missing, or a key or a value is wrong.
    """
    import jsonargparse

    from rlhf_lightning.cli.config_files import find_config, load_config
    from rlhf_lightning.cli.jsonargparse_errors import one_line_error
    from rlhf_lightning.cli.plain_values import check_plain_values
    from rlhf_lightning.loop.config import LoopConfig

    path = find_config(name)
    content = load_config(path)
    check_plain_values(content)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LoopConfig)
    try:
        parser.set_defaults({})
        given = parser.parse_object(content, defaults=True)
        parsed = parser.parse_args(list(overrides), namespace=given)
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise UserError(f"{path}: {one_line_error(parser, str(error))}") from error
    return LoopConfig(**parsed.as_dict())


def check_page() -> None:
    """Refuse to start without the packages of the page.

    Raises:
        UserError: naming the one that is missing.
    """
    try:
        import krippendorff  # noqa: F401

        import rlhf_lightning.feedback.server  # noqa: F401
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"the loop needs {package}; pip install 'rlhf_lightning[feedback]'") from error


def check_stages(config: LoopConfig, tree: Tree) -> Stages:
    """Read the stages' configs with the overlays of the first round; nothing is loaded or started.

    Raises:
        UserError: a config is wrong, or does not suit the loop.
    """
    from rlhf_lightning.feedback.candidates import read_prompts
    from rlhf_lightning.feedback.questions import strategy_of
    from rlhf_lightning.feedback.settings import read_guidelines
    from rlhf_lightning.loop.candidates import prompts_of_round
    from rlhf_lightning.loop.simulated import check_prompts
    from rlhf_lightning.loop.steps import Stages

    if config.guidelines is not None:
        read_guidelines(Path(config.guidelines))
    reward, policy = _names(config.reward), _names(config.policy)
    scorer, _ = _built(reward, config, tree, "reward")
    if scorer.heads < (needed := strategy_of(config.strategy).heads):
        raise UserError(
            f"strategy is {config.strategy}, which compares several heads, and the config of reward has {scorer.heads}; set "
            f"its model.heads to {needed} or more, such as 10, or set strategy to random"
        )
    stage, data = _built(policy, config, tree, "policy")
    prompts = [row["prompt"] for row in read_prompts(config.prompts)] if config.prompts else _prompts(data, policy[-1])
    prompts_of_round(prompts, config.candidate_prompts, config.seed, 0)
    if config.annotators == "simulated":
        check_prompts(prompts)
    return Stages(reward, policy, stage.text.config, stage.generation, prompts, options_of)


def options_of(names: Sequence[str]) -> dict[str, Any]:
    """Return every option of a run with these configs, as its `config.yaml` will hold them.

    Raises:
        UserError: a config is wrong.
    """
    from rlhf_lightning.cli.lightning import as_saved, plain
    from rlhf_lightning.cli.reading import read

    config = read(["fit", *(word for name in names for word in ("--config", name))])
    found: dict[str, Any] = plain(as_saved(config.parsed.config["fit"]))
    return found


def _names(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _built(names: Sequence[str], config: LoopConfig, tree: Tree, what: str) -> tuple[Any, Any]:
    """Make the stage and the data of a config with the overlay of the first round."""
    from rlhf_lightning.cli.reading import build_without_trainer, read
    from rlhf_lightning.loop.runs import policy_overlay, reward_overlay
    from rlhf_lightning.loop.tree import write_yaml

    words = [word for name in names for word in ("--config", name)]
    overlay = {"reward": reward_overlay, "policy": policy_overlay}[what]
    _check_classes(names, what, _given_classes(names))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{what}.yaml"
        write_yaml(path, overlay(config, tree.round(0), None))
        stage, data = build_without_trainer(read(["fit", *words, "--config", str(path)]))
    made = {"model": stage, "data": data, "model.reward": getattr(stage, "reward", None)}
    _check_classes(names, what, {key: type(each) for key, each in made.items()})
    return stage, data


def _given_classes(names: Sequence[str]) -> dict[str, type | None]:
    """Return the classes of the package that configs name; an overlay that does not fit them has a less clear message."""
    from functools import reduce

    import rlhf_lightning
    from rlhf_lightning import data, playground, rewards
    from rlhf_lightning.cli.config_files import find_config, load_config, merged
    from rlhf_lightning.run.kind import spread

    content: Any = reduce(merged, (load_config(find_config(name)) for name in names), {})
    model = spread(content.get("model"))
    nodes = {"model": model, "data": spread(content.get("data")), "model.reward": spread(model.get("reward"))}
    found: dict[str, type | None] = {}
    for key, node in nodes.items():
        name = str(node.get("class_path", "")).rpartition(".")[2]
        homes = (rlhf_lightning, data, rewards, playground)
        known = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
        found[key] = known if name else type(None)
    return found


def _check_classes(names: Sequence[str], what: str, found: dict[str, type | None]) -> None:
    """Refuse classes that the loop cannot join; one that is not known yet passes."""
    from rlhf_lightning.data import PreferenceData
    from rlhf_lightning.rewards import ModelReward
    from rlhf_lightning.stages.policy import PolicyStage
    from rlhf_lightning.stages.reward import RewardStage

    needed: dict[str, dict[str, type]] = {
        "reward": {"model": RewardStage, "data": PreferenceData},
        "policy": {"model": PolicyStage, "model.reward": ModelReward},
    }
    for key, kind in needed[what].items():
        if (given := found[key]) is not None and not issubclass(given, kind):
            name = "not set" if given is type(None) else given.__name__
            raise UserError(
                f"{what} is {', '.join(names)}, whose {key} is {name}; the loop needs {kind.__name__}: set {key}.class_path to "
                f"{kind.__name__}"
            )


def _prompts(data: Any, name: str) -> list[Any]:
    data.prepare_data()
    data.setup("fit")
    rows = getattr(data, "train_rows", None)
    if not rows or "prompt" not in rows[0]:
        raise UserError(f"{name} has no training prompts that can be read at once; set prompts to a file with prompts")
    return [row["prompt"] for row in rows]
