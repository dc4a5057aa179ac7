"""Critics: a head on the policy's trunk, or a trunk of its own."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_lightning.models.packing import states_before
from rlhf_lightning.models.policy import trunk_of
from rlhf_lightning.types import Rows


class SharedCritic(nn.Module):
    """A linear head, started at zero, on the hidden states that the policy computes anyway."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows, hidden: Tensor) -> Tensor:
        """float32 [B, T]: the value of the state before each response token, of `hidden` [N, H], 0 off the mask."""
        values = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1).float()
        return values.new_zeros(rows.mask.shape).masked_scatter(rows.mask, values)


class SeparateCritic(SharedCritic):
    """The same head on a language model of its own, whose output head is left out."""

    def __init__(self, model: nn.Module, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.trunk = trunk_of(model)

    def forward(self, rows: Rows, hidden: Tensor) -> Tensor:
        """As `SharedCritic`; the policy's `hidden` is not read."""
        return super().forward(rows, states_before(self.trunk, rows))


def save_critic(state: dict[str, Tensor], path: Path) -> None:
    """Write the critic's weights as safetensors."""
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)
