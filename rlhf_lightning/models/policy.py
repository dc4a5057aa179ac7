"""The policy, and the one function that computes log-probabilities of responses."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, supports_packing
from rlhf_lightning.models.logprobs import check_head, token_scores
from rlhf_lightning.models.packed_forward import in_micro_batches
from rlhf_lightning.types import PolicyOutput, Rows


class Policy(nn.Module):
    """A language model that writes, scores what it wrote and, with a critic, says what it expects."""

    def __init__(self, model: nn.Module, critic: nn.Module | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.critic, self.temperature = model, critic, temperature

    def generate(self, generation: Any, *args: Any) -> Any:
        """What `generation` writes with the language model; a method of the policy so that sharding can hook it."""
        critic = self.critic.values if self.critic is not None and self.critic.reads_policy_backbone else None
        return generation.generate(self.model, *args, critic=critic)

    def forward(self, rows: Rows, entropy: bool = False) -> PolicyOutput:
        """Log-probabilities (at the sampling temperature), entropy if asked for, and values if there is a critic."""
        found = in_micro_batches(backbone_of(self.model), rows, lambda part: self._measure(part, entropy))
        return PolicyOutput(*found)  # type: ignore[arg-type]

    def values(self, rows: Rows) -> Tensor:
        """float32 [B, T]: what the critic says; the language model is left out where the critic does not read its trunk."""
        critic = self.critic
        if critic is None or critic.reads_policy_backbone:
            return cast(Tensor, self.forward(rows).values)
        return cast(Tensor, in_micro_batches(critic.backbone, rows, lambda part: (critic(part, None),))[0])

    def _measure(self, rows: Rows, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scores = token_scores(self.model, rows, self.temperature, entropy)
        values = None if self.critic is None else self.critic(rows, scores.hidden)
        return scores.logprobs, scores.entropy, values

    def probe_capabilities(self) -> None:
        """Find out how each trunk and the head are to be read; a method of the policy so that sharding can hook it."""
        for backbone in self.backbones():
            supports_packing(backbone)
        check_head(self.model)

    def backbones(self) -> list[Any]:
        """The policy's, and the critic's where it has one of its own."""
        own = getattr(self.critic, "backbone", None)
        return [backbone_of(self.model), *([] if own is None else [own])]
