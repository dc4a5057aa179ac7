"""Define the frozen reference, whose log-probabilities the KL penalty compares with the policy's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import is_adapted, reference_view
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.tokenizer import load_vocabulary

BuiltReference = Literal["auto", "nf4", "int8", "full", "adapter"]
ReferenceKind = Literal["auto", "nf4", "int8", "full", "adapter", "none"]


@dataclass
class ReferenceModel:
    """Use another model than the policy as the reference, such as a teacher; its vocabulary must be the policy's."""

    name_or_path: str
    """A hub name, a local folder (a run's `export`, an adapter's too), or the package's playground/sft."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """Dtype of the weights; auto is that in which they are saved."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the weights."""
    attention: str | None = None
    """transformers' attn_implementation; by default sdpa where the architecture supports it, else eager."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository."""

    def check_vocabulary(self, tokenizer: Any) -> None:
        """Check that the model has the policy's vocabulary, without loading weights.

        Args:
            tokenizer: of the policy.

        Raises:
            UserError: a token of the policy is another one of the model, or is not in its vocabulary.
        """
        theirs = {place: token for token, place in load_vocabulary(self.name_or_path, self.trust_remote_code).items()}
        for token, place in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if theirs.get(place) != token:
                found = f"{theirs[place]!r}" if place in theirs else "not in its vocabulary"
                raise UserError(
                    f"model.reference is {self.name_or_path}, which has another vocabulary than the policy: token {place} is "
                    f"{found}, and {token!r} in the policy; set model.reference to a model with the policy's tokenizer"
                )

    def load(self, device: Any) -> Reference:
        """Load the model, frozen."""
        from rlhf_lightning.models.quantization import quantize_

        config = ModelConfig(
            self.name_or_path, dtype=self.dtype, attention=self.attention, trust_remote_code=self.trust_remote_code
        )
        model = load_causal_lm(config)
        if is_adapted(model):
            model = model.merge_and_unload(adapter_names=["default"])
        if self.quantization is not None:
            model = quantize_(model, self.quantization, device, experts=True)
        return CopiedReference(model.to(device), self.name_or_path)


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
