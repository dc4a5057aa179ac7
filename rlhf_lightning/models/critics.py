"""Critics: a head on the policy's trunk, on an adapter of its own beside the policy's, or on a trunk of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_lightning.io import atomic_write
from rlhf_lightning.models.backbone import backbone_of
from rlhf_lightning.models.export import sub_state
from rlhf_lightning.models.packed_forward import hidden_states_before
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.shared_base import CRITIC, AdapterBackbone, adapter_weights
from rlhf_lightning.types import Rows


class SharedCritic(nn.Module):
    """A linear head, started at zero, on the hidden states that the policy computes anyway."""

    reads_policy_backbone = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows, hidden: Tensor) -> Tensor:
        """float32 [B, T]: the value of the state before each response token, of `hidden` [N, H], 0 off the mask."""
        values = self.values(hidden)
        return values.new_zeros(rows.mask.shape).masked_scatter(rows.mask, values)

    def values(self, hidden: Tensor) -> Tensor:
        """float32 [N]: what is expected in the state before a token, of its `hidden` [N, H]."""
        return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1).float()  # type: ignore[no-any-return]


class SeparateCritic(SharedCritic):
    """The same head on the trunk of a language model of its own, whose output head is left out."""

    reads_policy_backbone = False

    def __init__(self, model: nn.Module, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.backbone = self.find_backbone(model)

    def find_backbone(self, model: nn.Module) -> Any:
        """What of `model` the critic reads."""
        return backbone_of(model)

    def forward(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """As `SharedCritic`; the policy's `hidden` is not read."""
        return super().forward(rows, hidden_states_before(self.backbone, rows))


class AdapterCritic(SeparateCritic):
    """The same head on a second adapter of the policy's own base; see `roles.add_critic_adapter`."""

    def find_backbone(self, model: nn.Module) -> Any:
        """No module: the policy holds these weights already."""
        return AdapterBackbone(model, CRITIC)


def save_critic(policy: Policy, state: dict[str, Tensor] | None, path: Path) -> None:
    """Write the critic's weights as safetensors: its head, and its trunk or the adapter that it has instead.

    Args:
        policy: with a critic.
        state: the policy's weights where it is sharded; by default they are its own.
        path: of the file.
    """
    assert policy.critic is not None
    weights = sub_state(state, "critic.") or policy.critic.state_dict()
    if isinstance(policy.critic, AdapterCritic):
        weights = {**weights, **adapter_weights(policy.model, CRITIC, sub_state(state, "model."))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    atomic_write(path, lambda partial: save_file(tensors, partial))
