"""Define the data that flows through the library: `Generated` → `Completions` → `Rollout` → `Batch`, and outputs.

Dimensions: B rows (a prompt with one response each), P prompt tokens (left padded), T response tokens (right padded),
V vocabulary. Log-probabilities and KL are in nats, at the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.seeding import Randomness

RawRows = list[dict[str, Any]]
"""Rows of a data set as Python values."""
RowsT = TypeVar("RowsT", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """Hold the tensors of B rows that completions and rollouts have in common."""

    tokens: Tensor
    """int64 [B, P+T]; prompt then response."""
    prompt_mask: Tensor
    """bool [B, P]; True on prompt tokens, False on the padding to their left."""
    mask: Tensor
    """bool [B, T]; True where the policy chose the token, the stop token included. A row that is all False has weight 0.

    False before the last True marks a token that the policy read, such as a user's turn or a tool's reply: later tokens attend
    to it, and it has no log-probability, value or loss. False after the last True is padding.
    """
    groups: Tensor
    """int64 [B]; number of the prompt in the batch of all ranks."""
    truncated: Tensor
    """bool [B]; the response ended without a stop token or a stop string."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def reach(self) -> Tensor:
        """Return int64 [B]: response tokens up to the last that the policy chose; 0 for a row of weight 0."""
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * places).amax(-1) if self.mask.shape[1] else self.mask.sum(-1)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor field that is not None, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self: RowsT, device: torch.device | str, non_blocking: bool = False) -> RowsT:
        """Copy the rows to `device`; Lightning calls this method to move a batch."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) for name, value in self.tensors().items()
        }
        return replace(self, **moved)

    def rows(self: RowsT, index: Tensor) -> RowsT:
        """Select the rows of `index` (int64 or bool), in that order; a tensor without a row dimension is kept as it is."""
        taken: dict[str, Any] = {name: value[index] if value.dim() else value for name, value in self.tensors().items()}
        return replace(self, **taken)


@dataclass(frozen=True)
class SamplingParams:
    """Hold the settings of one call of a generator."""

    max_new_tokens: int
    """T, the maximum length of a response in tokens."""
    temperature: float
    """Divides the logits; 0 is greedy."""
    stop_tokens: list[int]
    """Each of them ends a response and belongs to it."""
    pad_token: int
    """Fills the columns after the end of a response; may be a stop token."""
    responses_per_prompt: int = 1
    """Responses to each prompt, in adjacent rows."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have at least this probability; 1 keeps all."""
    top_k: int = 0
    """Sample from this number of most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 keeps all."""
    stop_strings: tuple[str, ...] = ()
    """A response ends with the token after which its text contains one of them; that token belongs to it."""
    decode: Callable[[list[int]], str] | None = None
    """Token ids → text, special tokens included; stop strings need it."""


@dataclass(frozen=True)
class GenerationRequest:
    """Hold what one call of a generator reads."""

    prompts: Tensor
    """int64 [N, P], left padded."""
    prompt_mask: Tensor
    """bool [N, P]; True on prompt tokens."""
    params: SamplingParams
    """Lengths, temperature, truncation, token ids and stop strings. An engine must honour or refuse each."""
    randomness: Randomness
    """Random numbers of the B = N × `params.responses_per_prompt` rows, in their order; the only source of randomness."""
    model: nn.Module | None = None
    """A causal language model of transformers, or a peft model around one, in eval mode, with the present weights. An engine
    that has weights of its own, such as a server, ignores it."""
    critic: Callable[[Tensor], Tensor] | None = None
    """Hidden states [n, H] of the model's backbone → values, float32 [n]. An engine that records values saves a later pass; any
    engine may ignore the critic."""

    def prompt_ids(self) -> list[list[int]]:
        """Return the token ids of each prompt without padding, as a server takes them."""
        return [ids[mask].tolist() for ids, mask in zip(self.prompts.cpu(), self.prompt_mask.cpu(), strict=True)]


@dataclass(frozen=True)
class Generated:
    """Hold the responses to N prompts; the B = N × `responses_per_prompt` rows of one prompt are adjacent."""

    tokens: Tensor
    """int64 [B, T]; right padded."""
    mask: Tensor
    """bool [B, T]; True on generated tokens, the stop token included."""
    stopped: Tensor
    """bool [B]; a stop token or a stop string ended the response. False: it reached `max_new_tokens`."""
    logprobs: Tensor | None
    """float32 [B, T]; of the full distribution at the temperature, also where top-p, top-k or min-p truncated the sampling.
    None where the generator records none."""
    values: Tensor | None = None
    """float32 [B, T]; V of the state before each token. None without a critic, or where the generator ignores it."""


class TextDecoder(Protocol):
    """Decode the responses of rows; `Completions.texts` has the arguments."""

    def __call__(self, rows: Rows, *, skip_special_tokens: bool, strip: bool, stop_token: bool) -> list[str]:
        """Return B strings."""

    def columns(self, rows: Rows, row: int, lengths: list[int]) -> list[int]:
        """Return the columns of the tokens that complete the first characters of a response, by their numbers."""


@dataclass(frozen=True)
class Completions(Rows):
    """Hold generated responses with their texts, which a reward reads."""

    prompts: list[str] = field(default_factory=list)
    """B strings, special tokens included, as the policy read them."""
    responses: list[str] = field(default_factory=list)
    """B strings as generated, with special tokens and white space, without the special token or stop string that ended them."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """The other columns of the data set: column name to B values."""
    logprobs: Tensor | None = None
    """float32 [B, T]; recorded while sampling. None for recorded text and for generators that record none."""
    values: Tensor | None = None
    """float32 [B, T]; recorded while sampling by a critic on the policy's backbone. None for other critics."""
    rewards: Tensor | None = None
    """float32 [B]; scores that the generator brought, as of an environment. They count where there is no reward."""
    step_rewards: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, T]; the tokens after which `rewards` were given, which are their sums. None: after the last token."""
    ends: list[list[int]] | None = field(default=None, kw_only=True)
    """B lists of increasing columns of `mask`, the last token of each step. None where responses are not split."""
    steps: list[list[str]] | None = field(default=None, kw_only=True)
    """The texts of the steps."""
    decoder: TextDecoder | None = field(default=None, kw_only=True, repr=False, compare=False)
    """Decodes the responses again with other choices. None for texts without a tokenizer."""

    def texts(self, *, skip_special_tokens: bool = False, strip: bool = False, stop_token: bool = False) -> list[str]:
        """Return the responses as text; by default as `responses` has them.

        Args:
            skip_special_tokens: remove every special token, such as `<think>` where the tokenizer marks it as special.
            strip: remove white space at both ends.
            stop_token: keep the special token that ended the response.

        Raises:
            UserError: special tokens are asked for and there is no `decoder`.
        """
        if not (skip_special_tokens or stop_token):
            return [response.strip() if strip else response for response in self.responses]
        if self.decoder is None:
            raise UserError("these completions have no decoder, so special tokens can neither be removed nor added")
        return self.decoder(self, skip_special_tokens=skip_special_tokens, strip=strip, stop_token=stop_token)

    def texts_of(self, mask: Tensor) -> list[str]:
        """Decode the response tokens under a mask [B, T] as they were generated; `responses` without a decoder."""
        if self.decoder is None:
            return list(self.responses)
        rows = replace(self, mask=mask.to(self.mask.device))
        return self.decoder(rows, skip_special_tokens=False, strip=False, stop_token=False)

    def columns_of_lengths(self, row: int, lengths: list[int]) -> list[int]:
        """Return the columns of the tokens that complete the first characters of a response.

        Args:
            row: of the response.
            lengths: numbers of characters of its text.

        Raises:
            UserError: there is no `decoder`.
        """
        if self.decoder is None and lengths:
            raise UserError("these completions have no decoder, so the tokens of a text cannot be found")
        return [] if self.decoder is None else self.decoder.columns(self, row, lengths)


@dataclass(frozen=True)
class Rollout(Rows):
    """Hold the tensors of `Completions` with log-probabilities, rewards and values."""

    logprobs: Tensor
    """float32 [B, T]; under the policy that generated the response, as the model that trains computes it."""
    reference_logprobs: Tensor | None
    """float32 [B, T]; under the reference. None in a run without a reference."""
    rewards: Tensor
    """float32 [B]; the whole reward of each response, before any KL penalty."""
    values: Tensor | None
    """float32 [B, T]; of the critic. None unless the algorithm `needs_values`."""
    step_rewards: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, T]; the parts of `rewards` that were given after a token. The rest is for the end of the response. None: all
    of it is."""
    final_values: Tensor | None = field(default=None, kw_only=True)
    """float32 [B]; of the critic after the last token of a truncated response, 0 elsewhere. None unless the algorithm
    `bootstraps`."""
    preferences: Tensor | None = field(default=None, kw_only=True)
    """float32 [B]; probability that the row is the better one of its recorded pair. None where rewards order the rows."""
    generator_logprobs: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, T]; of the same tokens, by an engine of its own (`Generator.separate_engine`). None where there is no such."""
    baselines: Tensor | None = field(default=None, kw_only=True)
    """float32 [B]; score of the greedy response to the row's prompt. None unless the algorithm has `greedy_baseline`."""
    mismatched: Tensor | None = field(default=None, kw_only=True)
    """bool [B]; the response is that to another prompt. None unless the rollout is made of labels."""
    components: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, K]; the named scores of a reward in the same order on every rank, NaN where it gave none. None for a reward
    without named scores."""
    component_weights: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, K]; `Reward.component_weights`, the same in every row, 0 for a score that is only logged. None for a reward
    that is no weighted sum."""


NOT_PER_TOKEN = ("tokens", "prompt_mask", "components", "component_weights", "bootstrap")
"""Fields of two dimensions whose second is not that of `mask`."""


@dataclass(frozen=True)
class Batch(Rollout):
    """Hold a rollout with its advantages; a loss reads this type and no other."""

    advantages: Tensor | None
    """float32 [B, T]; None for preference losses."""
    returns: Tensor | None
    """float32 [B, T]; the critic's targets. None unless the algorithm `needs_values`."""
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; weight of the whole optimiser step (all micro-batches, all ranks), by which the loss is divided."""

    @classmethod
    def of(cls, rollout: Rollout, advantages: Tensor | None = None, returns: Tensor | None = None) -> Batch:
        """Extend a rollout with advantages and returns."""
        rollout_fields = {item.name: getattr(rollout, item.name) for item in fields(Rollout)}
        return cls(**rollout_fields, advantages=advantages, returns=returns)


@dataclass(frozen=True)
class PolicyOutput:
    """Hold the policy's numbers for a batch of existing responses."""

    logprobs: Tensor
    """float32 [B, T]; of the response tokens."""
    entropy: Tensor | None = None
    """float32 [B, T]; None unless requested."""
    values: Tensor | None = None
    """float32 [B, T]; V of the state before each token. None where there is no critic."""


@dataclass(frozen=True)
class LossOutput:
    """Hold a loss before its division, and the metrics to log."""

    loss: Tensor
    """float32 []; a sum over tokens or rows. The stage divides it by the weight of the optimiser step."""
    means: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Metric name to (sum, count); added up over micro-batches, minibatches and ranks before dividing."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Metric name to a value whose maximum is logged."""


@dataclass(frozen=True)
class InstructionBatch(Rows):
    """Hold prompts with recorded completions, for supervised fine-tuning."""

    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; completion tokens of the whole optimiser step."""


@dataclass(frozen=True)
class PreferenceBatch(Rows):
    """Hold recorded responses and people's judgements, for reward modelling; rows of one group are compared."""

    ratings: Tensor
    """float32 [B]; higher is better. 1 and 0 for a pair, ranks for a ranking."""
    margins: Tensor
    """float32 [B]; the score difference that a response needs over its group, 0 without a recorded margin."""
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; groups (responses, for a regression) of the whole optimiser step."""
    probabilities: Tensor | None = field(default=None, kw_only=True)
    """float32 [B]; probability that a pair's better response, by `ratings`, is better. None: 1 everywhere."""
    bootstrap: Tensor | None = field(default=None, kw_only=True)
    """float32 [B, K]; how often the bootstrap sample of each of K heads has the group of a row. None: once."""
