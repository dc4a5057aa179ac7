"""Data modules of the playground, which generate their rows from a seed."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.module import RowData
from rlhf_lightning.errors import UserError
from rlhf_lightning.playground import task


class _PlaygroundData(RowData):
    """Base of the data modules, which generates rows instead of reading files."""

    def __init__(
        self,
        size: int = 2048,
        validation_size: int = 128,
        batch_size: int = 64,
        validation_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, validation_batch_size=validation_batch_size, seed=seed)
        if size < 1:
            raise UserError(f"data.size is {size}; it must be at least 1")
        if validation_size < 0:
            raise UserError(f"data.validation_size is {validation_size}; it must be at least 0")
        self.size, self.validation_size = size, validation_size

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Generate rows; a prompt is either in the training split or held out."""
        raise NotImplementedError

    def rows(self, split: str) -> list[dict[str, Any]] | None:
        """Return the generated rows of a split; all but `train` are held out."""
        return self.make(self.size, self.seed, False) if split == "train" else self.make(self.validation_size, 1, True)


class PlaygroundPrompts(_PlaygroundData):
    """Prompts for policy optimisation.

    Args:
        size: number of training prompts.
        validation_size: number of held-out prompts, the same for every seed.
        batch_size: prompts per rollout.
        validation_batch_size: prompts per validation batch; by default `batch_size`.
        seed: seed of the training prompts.
    """

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Generate different prompts.

        Raises:
            UserError: the playground has fewer.
        """
        if size > (available := task.number_of_prompts(held_out)):
            key, split = ("validation_size", "held-out") if held_out else ("size", "training")
            raise UserError(
                f"data.{key} is {size}; the playground has {available} different {split} prompts: set it to {available} or less"
            )
        return [{"prompt": prompt} for prompt in task.prompts(size, seed, held_out)]


class PlaygroundInstructions(_PlaygroundData):
    """Prompts with a reply of mixed quality, for supervised fine-tuning; the arguments are those of `PlaygroundPrompts`."""

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Generate prompts and completions."""
        return task.instructions(size, seed, held_out)  # type: ignore[return-value]


class PlaygroundLabels(_PlaygroundData):
    """Replies with labels, true or false: both of each pair of `PlaygroundPreferences`; `size` counts pairs.

    The arguments are those of `PlaygroundPrompts`.
    """

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Generate prompts, responses and labels."""
        pairs: list[Any] = task.preferences(size, seed, held_out)
        return [
            {"prompt": pair["prompt"], "response": pair[name], "label": name == "chosen"}
            for name in ("chosen", "rejected")
            for pair in pairs
        ]


class PlaygroundPreferences(_PlaygroundData):
    """Pairs of replies labelled by simulated annotators; the arguments are those of `PlaygroundPrompts`."""

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Generate prompts, chosen and rejected replies, and the name of the annotator."""
        return task.preferences(size, seed, held_out)  # type: ignore[return-value]
