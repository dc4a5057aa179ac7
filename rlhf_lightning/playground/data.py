"""Data modules of the playground: nothing is read, everything follows from a seed."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.module import RowData
from rlhf_lightning.errors import UserError
from rlhf_lightning.playground import task


class _PlaygroundData(RowData):
    """Rows that are made, not read."""

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
        """Rows; a prompt is in the training part or held out, never both."""
        raise NotImplementedError

    def rows(self, split: str) -> list[dict[str, Any]] | None:
        """See `RowData.rows`."""
        return self.make(self.size, self.seed, False) if split == "train" else self.make(self.validation_size, 1, True)


class PlaygroundPrompts(_PlaygroundData):
    """Prompts to write replies to.

    Args:
        size: prompts in the training part. validation_size: held-out ones, always the same.
        batch_size: prompts of a rollout. validation_batch_size: by default as many.
        seed: which prompts, and their order.
    """

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Prompts alone, all different.

        Raises:
            UserError: there are not that many.
        """
        if size > (most := task.number_of_prompts(held_out)):
            key, part = ("validation_size", "held-out") if held_out else ("size", "training")
            raise UserError(
                f"data.{key} is {size}; the playground has {most} different {part} prompts, ask for no more"
            )
        return [{"prompt": prompt} for prompt in task.prompts(size, seed, held_out)]


class PlaygroundInstructions(_PlaygroundData):
    """Prompts with a reply of mixed quality, for supervised fine-tuning; see `PlaygroundPrompts`."""

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Prompts and completions."""
        return task.instructions(size, seed, held_out)  # type: ignore[return-value]


class PlaygroundPreferences(_PlaygroundData):
    """Pairs of replies that simulated annotators labelled; see `PlaygroundPrompts`."""

    def make(self, size: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
        """Prompts, chosen and rejected replies, and who chose."""
        return task.preferences(size, seed, held_out)  # type: ignore[return-value]
