"""Adding up what the parts of a minibatch measured."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_max, all_sum
from rlhf_lightning.types import LossOutput


class MetricAccumulator:
    """Adds up sums, counts and maxima until they are read, over all ranks at once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, loss: LossOutput) -> None:
        """Take in what one part of a minibatch measured."""
        for name, (total, count) in loss.means.items():
            pair = torch.stack([total.double(), count.double()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        for name, value in loss.maxima.items():
            self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def read(self) -> dict[str, float]:
        """Means and maxima since the last reading; every rank must ask."""
        values: dict[str, float] = {}
        if self.sums:
            pairs = all_sum(torch.stack(list(self.sums.values())))
            values |= dict(zip(self.sums, (pairs[:, 0] / pairs[:, 1].clamp(min=1)).tolist(), strict=True))
        if self.maxima:
            values |= dict(zip(self.maxima, all_max(torch.stack(list(self.maxima.values()))).tolist(), strict=True))
        self.sums, self.maxima = {}, {}
        return values

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was added since the last reading, on the CPU."""
        return {"sums": _on("cpu", self.sums), "maxima": _on("cpu", self.maxima)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]], device: torch.device | str) -> None:
        """Restore it, where what is added next will be."""
        self.sums, self.maxima = _on(device, state["sums"]), _on(device, state["maxima"])


def _on(device: torch.device | str, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: number.to(device) for name, number in numbers.items()}
