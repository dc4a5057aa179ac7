"""Define the frozen reference, whose log-probabilities the KL penalty compares with the policy's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import is_adapted, reference_view
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.logprobs import response_logprobs

BuiltReference = Literal["auto", "nf4", "int8", "full", "adapter"]
ReferenceKind = Literal["auto", "nf4", "int8", "full", "adapter", "none"]


class Reference(ABC):
    """Compute log-probabilities under the reference; it is no module, so it has no train mode and is in no checkpoint."""

    kind: str

    @abstractmethod
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Compute log-probabilities of the response tokens of `tokens` [B, P+T]; float32 [B, T], 0 outside the mask."""


class CopiedReference(Reference):
    """Use a second copy of the model, in full precision or quantised."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        self._model, self.kind = model.eval().requires_grad_(False), kind

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Implement `Reference.logprobs`."""
        return response_logprobs(self._model, tokens, prompt_mask, mask, temperature)


class AdapterReference(Reference):
    """Use the policy with its adapter disabled, or with its initial adapter: exact, and without extra memory."""

    kind = "adapter"

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Implement `Reference.logprobs`."""
        with reference_view(self._policy):  # it has no dropout, so train mode changes nothing
            return response_logprobs(self._policy, tokens, prompt_mask, mask, temperature)


def build_reference(kind: BuiltReference, config: ModelConfig, policy: nn.Module, device: Any) -> Reference:
    """Build the reference of a run from the policy's initial weights, never from trained ones.

    Args:
        kind: `auto` is `adapter` for a policy with an adapter, else `nf4`.
        config: the policy's config.
        policy: the language model that trains.
        device: the device of a copy.

    Raises:
        UserError: `kind` is `adapter` and the policy has none.
    """
    chosen = ("adapter" if is_adapted(policy) else "nf4") if kind == "auto" else kind
    if chosen == "adapter":
        if not is_adapted(policy):
            raise UserError(
                "reference is adapter, and the policy has no adapter; set policy.lora to train one, or set reference to nf4, "
                "int8 or full"
            )
        return AdapterReference(policy)
    dtype: Any = str(language_model(policy).dtype).removeprefix("torch.")  # bf16-true has converted it
    return CopiedReference(_copy(chosen, replace(config, dtype=dtype), device).to(device), chosen)


def _copy(kind: Literal["nf4", "int8", "full"], config: ModelConfig, device: Any) -> nn.Module:
    """Load the policy's initial model, quantised as `kind` says and not as the policy is."""
    from rlhf_lightning.models.quantization import quantize_

    model = load_causal_lm(replace(config, quantization=None, lora=None, gradient_checkpointing=False))
    if kind == "full":
        return model
    if is_adapted(model):  # the weights of an earlier adapter are merged before quantisation
        model = model.merge_and_unload(adapter_names=["default"])
    return quantize_(model, kind, device, experts=True)
