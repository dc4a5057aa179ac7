"""Define critics: a value head on the policy's backbone, on a second adapter of it, or on a separate backbone."""

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
    """Predict values with a linear head, initialised to zero, on the hidden states that the policy computes."""

    reads_policy_backbone = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows, hidden: Tensor) -> Tensor:
        """Compute the value of the state before each response token from `hidden` [N, H]; float32 [B, T], 0 outside the mask."""
        values = self.values(hidden)
        return values.new_zeros(rows.mask.shape).masked_scatter(rows.mask, values)

    def values(self, hidden: Tensor) -> Tensor:
        """Compute values, float32 [N], from the hidden states [N, H] before N tokens."""
        return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1).float()  # type: ignore[no-any-return]


class SeparateCritic(SharedCritic):
    """Predict values with the same head on the backbone of a separate language model."""

    reads_policy_backbone = False

    def __init__(self, model: nn.Module, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.backbone = self.find_backbone(model)

    def find_backbone(self, model: nn.Module) -> Any:
        """Return the backbone of `model`."""
        return backbone_of(model)

    def forward(self, rows: Rows, hidden: Tensor | None) -> Tensor:
        """Compute values as `SharedCritic` does, from the critic's own hidden states; the policy's `hidden` is ignored."""
        return super().forward(rows, hidden_states_before(self.backbone, rows))


class AdapterCritic(SeparateCritic):
    """Predict values with the same head on a second adapter of the policy's base (`shared_base.add_critic_adapter`)."""

    def find_backbone(self, model: nn.Module) -> Any:
        """Return a view that is no module, because the policy already holds these weights."""
        return AdapterBackbone(model, CRITIC)


def save_critic(policy: Policy, state: dict[str, Tensor] | None, path: Path) -> None:
    """Save the critic's weights as safetensors: its head, and its own backbone or adapter.

    Args:
        policy: a policy with a critic.
        state: the gathered weights of a sharded policy; None reads them from the policy.
        path: the file.
    """
    assert policy.critic is not None
    weights = sub_state(state, "critic.") or policy.critic.state_dict()
    if isinstance(policy.critic, AdapterCritic):
        weights = {**weights, **adapter_weights(policy.model, CRITIC, sub_state(state, "model."))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    atomic_write(path, lambda partial: save_file(tensors, partial))
