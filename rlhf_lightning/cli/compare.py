"""`compare MODEL MODEL […]`: models on the same prompts by one judge, or reward models on the same pairs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError, nearest

if TYPE_CHECKING:
    from rlhf_lightning.evaluation.model_comparison import ModelComparison
    from rlhf_lightning.rewards.base import Reward

HELP = "compare exports or hub names: win rates, strengths, replies side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add models, data, judge and sampling."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="an export, another folder or a hub name")
    parser.add_argument("--data", required=True, metavar="FILE", help="prompts; for reward models pairs")
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="a reward model (folder or hub name), a reward class, or a YAML file with class_path and init_args of a reward; "
        "without a judge the models are reward models, measured on pairs",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("compare.html"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="read the first N rows only")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="prompts at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Compare, print the result and save the page.

    Raises:
        UserError: a model, the data or the judge cannot be used.
    """
    from rlhf_lightning.errors import check_seed

    check_seed("--seed", options.seed)
    for name in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; set it to 1 or more")
    if len(set(options.models)) < len(options.models):
        raise UserError("two models have the same name; pass each model once")
    if options.judge is None:
        return _reward_models(options)
    if len(options.models) < 2:
        raise UserError("there is one model and nothing to compare it with; pass a second one")
    return _policies(options)


def _policies(options: argparse.Namespace) -> int:
    from rlhf_lightning.evaluation.comparison import PairwiseJudge
    from rlhf_lightning.evaluation.model_comparison import compare_responses
    from rlhf_lightning.evaluation.responses import generate_responses, load_encoder
    from rlhf_lightning.feedback.candidates import read_prompts
    from rlhf_lightning.generation.local import Sampler
    from rlhf_lightning.models.config import ModelConfig

    judge = named_reward(options.judge)
    judge.check()
    rows = read_prompts(options.data)[: options.limit]
    generation = Sampler(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    configs = [ModelConfig(name_or_path=name) for name in options.models]
    for config in configs:
        load_encoder(config, generation)  # before any weights
    judge.check_columns(rows[0], "data")
    responses = []
    for config in configs:
        texts = [""] * len(rows)
        for batch in generate_responses(config, rows, 1, generation, options.seed, options.batch_size):
            for each in batch:
                texts[each.row] = each.responses[0]
        responses.append(texts)
        print(f"{config.name_or_path}: {len(texts)} replies", flush=True)
    pairwise = judge if isinstance(judge, PairwiseJudge) else None
    scores = None if pairwise is not None else [scores_of(judge, configs[0], rows, texts) for texts in responses]
    result = compare_responses(options.models, rows, responses, scores, pairwise)
    table = _comparison_table(result, options.judge, len(rows))
    _finish(options, table, _samples(rows, responses, scores))
    return 0


def scores_of(judge: Reward, config: Any, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
    """Score one response per row; NaN without a score.

    Args:
        judge: any reward.
        config: a model whose tokenizer makes the completions' tokens, for rewards that read them.
        rows: prompts with the columns that the judge reads.
        texts: responses.
    """
    import torch

    from rlhf_lightning.evaluation.answers import RESPONSES_AT_ONCE, recorded_completions
    from rlhf_lightning.models.loading import load_encoder
    from rlhf_lightning.rewards.base import score

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(config)
    judge.load(device)
    recorded = [{**row, "response": text} for row, text in zip(rows, texts, strict=True)]
    scores: list[float] = []
    with torch.no_grad():
        for start in range(0, len(recorded), RESPONSES_AT_ONCE):
            completions = recorded_completions(encoder, recorded[start : start + RESPONSES_AT_ONCE], device)
            scores += score(judge, completions).tolist()
    return scores


def named_reward(name: str) -> Reward:
    """Make a reward of a YAML file, a class, or a reward model.

    Raises:
        UserError: it cannot be made.
    """
    from rlhf_lightning.cli.plugin_families import subclasses
    from rlhf_lightning.playground import reward as playground_reward
    from rlhf_lightning.rewards import ModelReward
    from rlhf_lightning.rewards.base import Reward

    assert playground_reward  # its class can be named
    classes = {each.__name__: each for each in subclasses(Reward)}
    if name.endswith((".yaml", ".yml")):
        return _reward_of_file(Path(name))
    if name in classes:
        try:
            return classes[name]()
        except TypeError as error:
            raise UserError(
                f"--judge {name} needs arguments ({error}); put class_path and init_args into a YAML file"
            ) from None
    if name.isidentifier() and name[:1].isupper() and not Path(name).exists():
        raise UserError(f"--judge is {name!r}, which is no reward class; {nearest(name, classes)}")
    return ModelReward(name)


def _reward_of_file(path: Path) -> Reward:
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    from rlhf_lightning import bounded_yaml
    from rlhf_lightning.cli.lightning import add_current_folder
    from rlhf_lightning.rewards.base import Reward

    if not path.is_file():
        raise UserError(f"--judge is {path}, and there is no such file")
    text = path.read_text(encoding="utf-8")
    try:
        values = bounded_yaml.load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if isinstance(values, dict) and set(values) == {"reward"}:
        values = values["reward"]
    if not isinstance(values, dict) or "class_path" not in values:
        raise UserError(f"{path} has no class_path; write class_path and init_args of a reward into it")
    add_current_folder()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--judge", type=Reward, required=True)
    try:
        reward: Reward = parser.instantiate_classes(parser.parse_object({"judge": values})).judge
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:500]}") from None
    return reward


def _comparison_table(result: ModelComparison, judge: str, prompts: int) -> dict[str, Any]:
    count = len(result.names)
    rows = []
    for place in result.order:
        score, low, high = result.strengths[place]
        rows.append([result.names[place], _number(score), f"{_number(low)} to {_number(high)}"])
    duels = [
        [
            f"{result.names[duel.first]} against {result.names[duel.second]}",
            _number(duel.rate),
            f"{_number(duel.low)} to {_number(duel.high)}; {_number(duel.length_controlled)} at equal length; "
            f"{sum(x == 0.5 for x in duel.known)} ties, {prompts - len(duel.known)} not judged"
            + ("" if duel.consistency is None else f"; both orders agree on {duel.consistency:.0%}"),
        ]
        for duel in result.duels
    ]
    matrix = [["" if i == j else _number(result.rate(i, j)) for j in range(count)] for i in range(count)]
    return {
        "names": result.names,
        "matrix": matrix,
        "judge": judge,
        "prompts": prompts,
        "heading": "Strengths and intervals",
        "note": "Bradley-Terry scores with ties (Davidson), in nats, with 95 % intervals; below them win rates with bootstrap "
        "intervals over prompts.",
        "columns": ["model", "score", "95 % interval"],
        "rows": [*rows, *duels],
    }


REWARD_COLUMNS = (
    "accuracy",
    "accuracy/low",
    "accuracy/high",
    "calibration_error",
    "length_correlation",
    "accuracy/better_is_longer",
    "accuracy/better_is_shorter",
)


def _reward_models(options: argparse.Namespace) -> int:
    from rlhf_lightning.data.modules import PreferenceData
    from rlhf_lightning.evaluation.model_comparison import reward_model_metrics
    from rlhf_lightning.models.config import ModelConfig
    from rlhf_lightning.rewards import ModelReward

    pairs = (PreferenceData(validation=options.data).rows("validation") or [])[: options.limit]
    if not pairs:
        raise UserError(f"--data is {options.data}, which has no pair; pass pairs, or --judge to compare policies")
    judges = [ModelReward(name) for name in options.models]
    for judge in judges:
        judge.check()
    rows = []
    for name, judge in zip(options.models, judges, strict=True):
        sides = [
            scores_of(judge, ModelConfig(name_or_path=name), pairs, [row[side] for row in pairs])
            for side in ("chosen", "rejected")
        ]
        metrics = reward_model_metrics(pairs, *sides)
        rows.append([name, *(_number(metrics.get(column, float("nan"))) for column in REWARD_COLUMNS)])
    table = {
        "names": options.models,
        "matrix": [],
        "judge": "",
        "prompts": len(pairs),
        "heading": f"Reward models on {len(pairs)} pairs",
        "note": "Accuracy with a 95 % bootstrap interval; a tie counts half. Length correlation: 0 is no preference for length.",
        "columns": ["model", *REWARD_COLUMNS],
        "rows": rows,
    }
    _finish(options, table, {"scores": [], "rows": [], "total": 0})
    return 0


def _samples(
    rows: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]], scores: Sequence[Sequence[float]] | None
) -> dict[str, Any]:
    from rlhf_lightning.rewards.judge import prompt_text

    def cell(model: int, row: int) -> dict[str, Any]:
        value = None if scores is None else scores[model][row]
        return {"after": [responses[model][row], [] if scores is None else [value if value == value else None]]}

    found = [
        {"prompt": prompt_text(row["prompt"]), "runs": [cell(model, place) for model in range(len(responses))]}
        for place, row in enumerate(rows)
    ]
    return {"scores": [] if scores is None else ["score"], "rows": found, "total": len(found)}


def _finish(options: argparse.Namespace, table: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Print the tables and save the page."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_lightning.report.command import save_page
    from rlhf_lightning.report.page import html_comparison

    console = Console(highlight=False)
    shown = [(["against", *table["names"]], [[n, *r] for n, r in zip(table["names"], table["matrix"], strict=False)])]
    for columns, rows in [*(shown if table["matrix"] else []), (table["columns"], table["rows"])]:
        printed = Table(*columns)
        for row in rows:
            printed.add_row(*map(Text, row))
        console.print(printed)
    save_page(options.output, html_comparison(f"{len(table['names'])} models", table, samples))
    print(options.output)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
