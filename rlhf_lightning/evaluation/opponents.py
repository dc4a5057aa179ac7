"""The responses that a policy is compared with: of the start of a run, of its reference, or of another model."""

from __future__ import annotations

import copy
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.responses import generate_responses, load_encoder
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.types import RawRows


class Opponent:
    """A model whose responses are generated once, on rank zero.

    Args:
        against: `reference` for the model that the policy was before training, else a folder or a hub name.
        stage: has the model config and the generator of the policy.

    Raises:
        UserError: there is no such model, or the stage generates no text.
    """

    def __init__(self, against: str, stage: Any) -> None:
        generation: Generator | None = getattr(stage, "generation", None)
        if generation is None:
            raise UserError(
                f"{type(stage).__name__} generates no responses to compare; remove WinRate from trainer.callbacks"
            )
        config = copy.deepcopy(stage.text.config)
        self.config = config if against == "reference" else ModelConfig(name_or_path=against)
        self.generation = generation
        load_encoder(self.config, generation)

    def responses(self, rows: RawRows) -> list[str]:
        """Generate one response per row; the model is loaded for this call alone."""
        texts: list[str | None] = [None] * len(rows)
        for batch in generate_responses(self.config, rows, 1, self.generation):
            for each in batch:
                texts[each.row] = each.responses[0]
        return [text or "" for text in texts]
