"""Record the tokens of B rows while they decode."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.generation.sampling import sample, truncation
from rlhf_lightning.generation.stop_strings import StopStrings, stop_strings_of
from rlhf_lightning.types import Generated, GenerationRequest


class DecodingState:
    """Hold the tokens, log-probabilities and values of B rows of up to T tokens, and one uniform number per token position."""

    def __init__(self, request: GenerationRequest) -> None:
        params = request.params
        device, width = request.prompts.device, params.max_new_tokens
        rows = len(request.prompts) * params.responses_per_prompt
        self.temperature, self.width, self.truncate = params.temperature, width, truncation(params)
        self.uniforms = request.randomness.uniforms(width).to(device)
        self.stops = torch.tensor(params.stop_tokens, dtype=torch.long, device=device)
        self.tokens = torch.full((rows, width), params.pad_token, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, width, device=device)
        self.critic = request.critic
        self.values = None if request.critic is None else torch.zeros(rows, width, device=device)
        self.generated = torch.zeros(rows, dtype=torch.long, device=device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.stop_strings = stop_strings_of(params)
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        """Tokens of each row on the host, where there are stop strings."""

    def extend(self, rows: Tensor, hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sample and record one token for each of `rows`.

        Args:
            rows: int64 [n]; indices of the rows.
            hidden: [n, H]; hidden states, which the critic reads.
            logits: float32 [n, V]; of the same states.

        Returns:
            The tokens, int64 [n], and whether each row continues, bool [n].
        """
        step = self.generated[rows]
        chosen, logprobs = sample(logits, self.temperature, self.uniforms[step, rows], self.truncate)
        self.tokens[rows, step], self.logprobs[rows, step] = chosen, logprobs
        if self.critic is not None and self.values is not None:
            self.values[rows, step] = self.critic(hidden)
        self.generated[rows] = step + 1
        stopped = torch.isin(chosen, self.stops)
        if self.stop_strings is not None:
            stopped = stopped | self._complete_a_string(self.stop_strings, rows, chosen)
        self.stopped[rows] = stopped
        return chosen, ~stopped & (step + 1 < self.width)

    def _complete_a_string(self, stop_strings: StopStrings, rows: Tensor, chosen: Tensor) -> Tensor:
        """Tell which of `rows` end because their token completes a stop string, bool [n]; this waits for the device."""
        completed = []
        for row, token in torch.stack([rows, chosen], 1).tolist():
            self.ids[row].append(token)
            completed.append(stop_strings.completed_by_last(self.ids[row]))
        return torch.tensor(completed, device=chosen.device)

    def result(self) -> Generated:
        """Return the recorded responses."""
        mask = torch.arange(self.width, device=self.generated.device) < self.generated[:, None]
        return Generated(self.tokens, mask, self.stopped, self.logprobs, self.values)
