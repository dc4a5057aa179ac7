"""An algorithm that skips the rest of every rollout after its first optimiser step."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.algorithms.ppo import PPO


@dataclass
class StopsAtOnce(PPO):
    """PPO whose decision to stop does not depend on the rounding of `kl/update`, which is about 0 in a first step."""

    def stop(self, metrics: dict[str, float]) -> bool:
        return "kl/update" in metrics
