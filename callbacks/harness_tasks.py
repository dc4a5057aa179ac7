"""Tasks of lm-evaluation-harness on the present weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, ExportRequest, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.harness import find_tasks, harness_scores
from rlhf_lightning.training.lightning_compat import state_key


class HarnessTasks(Evaluation):
    """Logs `val/harness/<task>/<metric>`: tasks of lm-evaluation-harness (`pip install 'rlhf_lightning[harness]'`).

    All ranks export the present weights to a temporary folder of the run's; rank zero loads them a second time, runs the tasks
    and removes the folder. Other ranks wait.

    Args:
        tasks: names of tasks, groups or tags.
        include_path: folder with task files, which alone are searched; null searches those that the harness ships, whose data
            are downloaded.
        every: run at the first validation and at every so many after it; tasks take longer than other evaluations.
        limit: documents of each task; null for all.
        few_shot: examples in front of each document; null for the task's own number.
        batch_size: requests of a pass.
        chat_template: put documents into the model's chat template.
        device: where the second copy of the model is loaded; null for cuda where there is one, else cpu.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: HarnessTasks
              init_args: {tasks: [my_task], include_path: tasks, limit: 200}
    """

    def __init__(
        self,
        tasks: Sequence[str],
        include_path: str | None = None,
        every: int = 1,
        limit: int | None = None,
        few_shot: int | None = None,
        batch_size: int = 8,
        chat_template: bool = False,
        device: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        if not tasks:
            raise UserError("HarnessTasks.tasks is empty; set it to names of tasks")
        for name, value in (("every", every), ("limit", limit), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"HarnessTasks.{name} is {value}; set it to 1 or more")
        self.tasks, self.include_path, self.every = list(tasks), include_path, every
        self.limit, self.few_shot, self.batch_size = limit, few_shot, batch_size
        self.chat_template, self.device = chat_template, device
        self.validations = 0
        self.manager: Any = None

    @property
    def state_key(self) -> str:
        """Return the key of this callback in a checkpoint, which tells several of one class apart."""
        return state_key(self, tasks=self.tasks, include_path=self.include_path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the tasks before weights are loaded.

        Raises:
            UserError: the harness is not installed, or it has no such task.
        """
        super().setup(trainer, pl_module, stage)
        self.manager = find_tasks(self.tasks, self.include_path)

    def evaluate(self, results: ValidationResults, ask: Ask) -> dict[str, float]:
        """Export the model and run the tasks, where they are due.

        Raises:
            UserError: the export failed.
        """
        due = results.split == "test" or self.validations % self.every == 0
        self.validations += results.split == "val"
        if not due:
            return {}
        with tempfile.TemporaryDirectory(prefix=".harness-", dir=results.folder) as folder:
            export = Path(folder) / "model"
            ask(ExportRequest(str(export)))
            if not export.is_dir():
                raise UserError(
                    "the export of the model failed, as printed above; free the disk or remove HarnessTasks"
                )
            scores = harness_scores(
                export,
                self.tasks,
                self.manager,
                self.limit,
                self.few_shot,
                self.batch_size,
                self.chat_template,
                self.device,
            )
        return {f"harness/{name}": value for name, value in scores.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations on resume."""
        self.validations = state_dict["validations"]
