"""The frozen reference that a policy is held to; there is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import is_adapted, reference_view
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.logprobs import response_logprobs

if TYPE_CHECKING:
    from rlhf_lightning.models.loading import ModelConfig

ReferenceKind = Literal["auto", "nf4", "int8", "full", "adapter"]


class Reference(ABC):
    """Says what the reference thinks of responses. No module, so it is in no checkpoint and has no train mode to be put in."""

    kind: str

    @abstractmethod
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """float32 [B, T] of the response tokens of `tokens` [B, P+T], 0 off the mask."""


class CopiedReference(Reference):
    """A second copy of the model, whole or quantised."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        self._model, self.kind = model.eval().requires_grad_(False), kind

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """See `Reference.logprobs`."""
        return response_logprobs(self._model, tokens, prompt_mask, mask, temperature)


class AdapterReference(Reference):
    """The policy itself with its adapter off, or with the adapter it began with: exact, and free."""

    kind = "adapter"

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """See `Reference.logprobs`."""
        with reference_view(self._policy):  # no dropout behind it, so train mode changes nothing
            return response_logprobs(self._policy, tokens, prompt_mask, mask, temperature)


def build_reference(kind: ReferenceKind, config: ModelConfig, policy: nn.Module, device: Any) -> Reference:
    """The reference of a run, from where the policy came from, never from weights that have learned.

    Args:
        kind: `auto` is `adapter` for a policy with an adapter, else `nf4`.
        config: of the policy.
        policy: the language model that trains.
        device: where a copy goes.

    Raises:
        UserError: `adapter` for a policy without one.
    """
    chosen = ("adapter" if is_adapted(policy) else "nf4") if kind == "auto" else kind
    if chosen == "adapter":
        if not is_adapted(policy):
            raise UserError(
                "reference `adapter` is the base under the policy's adapter, and the policy has none: set policy.lora to "
                "train one, or choose another reference (nf4, int8, full)"
            )
        return AdapterReference(policy)
    dtype: Any = str(language_model(policy).dtype).removeprefix("torch.")  # to which bf16-true has converted it
    return CopiedReference(_copy(chosen, replace(config, dtype=dtype), device).to(device), chosen)


def _copy(kind: Literal["nf4", "int8", "full"], config: ModelConfig, device: Any) -> nn.Module:
    """The model that the policy was at the beginning, quantised as the reference's kind says and not as the policy is."""
    from rlhf_lightning.models.loading import load_causal_lm
    from rlhf_lightning.models.quantization import quantize_

    model = load_causal_lm(replace(config, quantization=None, lora=None, gradient_checkpointing=False))
    if kind == "full":
        return model
    if is_adapted(model):  # an adapter trained before: its weights become part of what is quantised
        model = model.merge_and_unload(adapter_names=["default"])
    return quantize_(model, kind, device, experts=True)
