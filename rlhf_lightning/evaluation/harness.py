"""lm-evaluation-harness on an export: tasks found before the run, scores as plain numbers."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest


def find_tasks(tasks: Sequence[str], include_path: str | None) -> Any:
    """Find tasks by name, without loading their data.

    Args:
        tasks: names of tasks, groups or tags.
        include_path: folder with task files, which alone are searched; None searches those that the harness ships.

    Returns:
        The harness's manager of tasks.

    Raises:
        UserError: the harness is not installed, the folder does not exist, or it has no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "HarnessTasks needs lm-evaluation-harness; install it with: pip install 'rlhf_lightning[harness]'"
        )
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise UserError(
            f"HarnessTasks.include_path is {include_path}, which is no folder; set it to one with task files"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    folder = None if include_path is None else str(Path(include_path).expanduser().absolute())
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    for name in tasks:
        if name not in manager.all_tasks:
            raise UserError(f"HarnessTasks.tasks has {name!r}, which is no task; {nearest(name, manager.all_tasks)}")
    return manager


def harness_scores(
    export: Path,
    tasks: Sequence[str],
    manager: Any,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    device: str | None = None,
) -> dict[str, float]:
    """Run tasks on an exported model.

    Args:
        export: folder of the model.
        tasks: names.
        manager: of `find_tasks`.
        limit: number of documents of each task; None for all.
        few_shot: examples in front of each document; None for the task's own number.
        batch_size: requests of a pass.
        chat_template: put documents into the model's chat template.
        device: where the model is loaded; None for cuda where there is one, else cpu.

    Returns:
        `<task>/<metric>`, or `<task>/<metric>/<filter>` where the task has filters, to its value.
    """
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from rlhf_lightning.models.adapters import is_adapted
    from rlhf_lightning.models.config import ModelConfig
    from rlhf_lightning.models.loading import load_causal_lm, load_encoder

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig(name_or_path=str(export))
    model: Any = load_causal_lm(config)
    if is_adapted(model):
        model = model.merge_and_unload(adapter_names=["default"])
    with redirect_stderr(io.StringIO()):  # bars of progress; an error is raised
        found: Any = simple_evaluate(
            model=HFLM(
                pretrained=model.to(device).eval(),
                tokenizer=load_encoder(config).tokenizer,
                batch_size=batch_size,
                device=device,
            ),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=few_shot,
            apply_chat_template=chat_template,
            log_samples=False,
            bootstrap_iters=0,
        )
    return flat_scores(found["results"])


def flat_scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Name the numbers of a result of the harness.

    >>> flat_scores({"toy": {"alias": "toy", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1}})
    {'toy/acc': 0.5, 'toy/exact_match/strict': 1.0}
    """
    scores = {}
    for task, row in results.items():
        for key, value in row.items():
            metric, _, kind = key.partition(",")
            if isinstance(value, int | float) and kind:
                scores[f"{task}/{metric}" if kind == "none" else f"{task}/{metric}/{kind}"] = float(value)
    return scores
