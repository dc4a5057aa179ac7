"""Define the policy: a language model that generates and scores responses, with an optional critic."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, supports_packing
from rlhf_lightning.models.logprobs import check_head, response_logprobs, token_scores
from rlhf_lightning.models.packed_forward import final_hidden_states, map_micro_batches
from rlhf_lightning.types import GenerationRequest, PolicyOutput, Rows

__all__ = ["Policy", "response_logprobs"]


class Policy(nn.Module):
    """Generate responses with a language model, and compute their log-probabilities and, with a critic, their values."""

    def __init__(self, model: nn.Module, critic: nn.Module | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.critic, self.temperature = model, critic, temperature

    @property
    def device(self) -> torch.device:
        """The device of the language model."""
        return next(self.model.parameters()).device

    def request(self, **fields: Any) -> GenerationRequest:
        """Make a request to a generator with the present weights, and with a critic that reads the policy's backbone."""
        critic: Any = self.critic.values if self.critic is not None and self.critic.reads_policy_backbone else None
        return GenerationRequest(model=self.model, critic=critic, **fields)

    def forward(self, rows: Rows, entropy: bool = False) -> PolicyOutput:
        """Compute log-probabilities at the sampling temperature, the entropy if requested, and values with a critic."""
        results = map_micro_batches(backbone_of(self.model), rows, lambda batch: self._measure(batch, entropy))
        return PolicyOutput(*results)  # type: ignore[arg-type]

    def values(self, rows: Rows) -> Tensor:
        """Compute the critic's values, float32 [B, T]; a critic with its own backbone skips the language model."""
        critic = self.critic
        if critic is None or critic.reads_policy_backbone:
            return cast(Tensor, self.forward(rows).values)
        return cast(Tensor, map_micro_batches(critic.backbone, rows, lambda batch: (critic(batch, None),))[0])

    def final_values(self, rows: Rows) -> Tensor:
        """Compute the critic's value of the state after the last token of each truncated response; float32 [B], 0 for other rows.

        Only truncated rows are computed. The policy must have a critic.
        """
        critic: Any = self.critic
        truncated = rows.truncated & rows.mask.any(-1)
        values = torch.zeros(len(rows), device=rows.tokens.device)
        if truncated.any():
            backbone = backbone_of(self.model) if critic.reads_policy_backbone else critic.backbone
            compute = lambda batch: (critic.values(final_hidden_states(backbone, batch)),)  # noqa: E731
            values[truncated] = cast(Tensor, map_micro_batches(backbone, rows.rows(truncated), compute)[0])
        return values

    def _measure(self, rows: Rows, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scores = token_scores(self.model, rows, self.temperature, entropy)
        values = None if self.critic is None else self.critic(rows, scores.hidden)
        return scores.logprobs, scores.entropy, values

    def probe_capabilities(self) -> None:
        """Probe every backbone and check the head; a method of the policy, so that sharding can hook it."""
        for backbone in self.backbones():
            supports_packing(backbone)
        check_head(self.model)

    def backbones(self) -> list[Any]:
        """Return the backbone of the language model, and that of the critic where it has its own."""
        own = getattr(self.critic, "backbone", None)
        return [backbone_of(self.model), *([] if own is None else [own])]
