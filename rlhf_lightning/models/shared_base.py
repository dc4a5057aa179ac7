"""Share one base between roles: the policy's adapter, a trainable adapter of a critic, frozen adapters of reward models."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import adapter_view, adding_adapter, without_dropout
from rlhf_lightning.models.backbone import backbone_of, language_model
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.loading import adopt_normalization, load_model_config
from rlhf_lightning.models.paths import base_path, is_adapter, resolve_path
from rlhf_lightning.seeding import seeded

CRITIC = "critic"
"""Name of a critic's adapter."""
HEADS = ("score", "classifier")
"""Names of a classifier's head in an adapter's folder."""


@dataclass(frozen=True)
class SharedBase:
    """Hold the policy's model, a base with an adapter, to which other roles may add adapters."""

    model: Any
    """A peft model, not yet sharded."""
    config: ModelConfig
    """The policy's config."""


def add_critic_adapter(base: SharedBase) -> None:
    """Add a trainable adapter with the initial weights of the policy's: new as `policy.lora` says, or from its folder."""
    folder = resolve_path(base.config.name_or_path) if base.config.name_or_path else ""
    with adding_adapter(base.model, trains=True), seeded(base.config.seed):
        if is_adapter(folder):
            base.model.load_adapter(folder, adapter_name=CRITIC, is_trainable=True)
            without_dropout(base.model, (CRITIC,))
        else:
            base.model.add_adapter(CRITIC, copy.deepcopy(base.model.peft_config["default"]))


def adapter_weights(model: Any, name: str, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return an adapter's weights under peft's names; a sharded model passes its gathered `state`."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


class AdapterBackbone:
    """Run the backbone of a peft model with one of its adapters enabled; attributes are those of the backbone.

    The view is no module, so a role that holds it does not move, shard or save the policy's base.
    """

    def __init__(self, model: Any, adapter: str) -> None:
        self.model, self.adapter = model, adapter

    def __call__(self, **inputs: Any) -> Any:
        """Run the backbone."""
        with adapter_view(self.model, [self.adapter]):
            return self.unwrapped(**inputs)

    @property
    def unwrapped(self) -> Any:
        """The backbone module, whose capabilities this view has."""
        return backbone_of(self.model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying looks these up before the attributes exist
            raise AttributeError(name)
        return getattr(self.unwrapped, name)


class AdapterClassifier(nn.Module):
    """Hold a reward model as a frozen adapter on the policy's base, with its own head and config, for `score_rows`."""

    def __init__(self, model: Any, adapter: str, head: Tensor, bias: Tensor | None, config: Any) -> None:
        super().__init__()
        self.base_model, self.config = AdapterBackbone(model, adapter), config
        self.score = _Head(head, bias)


class _Head(nn.Module):
    """Map hidden states to one score in the dtype of the weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, H] to [B, 1]."""
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def shares_base_with(base: SharedBase, config: ModelConfig) -> bool:
    """Tell whether `config` names the folder of an adapter whose base is the policy's."""
    if (
        base.config.name_or_path is None
        or config.name_or_path is None
        or not is_adapter(resolve_path(config.name_or_path))
    ):
        return False
    return _identity(base_path(config.name_or_path)) == _identity(base_path(base.config.name_or_path))


def _identity(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def why_not_shareable(config: ModelConfig) -> str | None:
    """Return why an adapter cannot share the base with others, because it changes the base or is unsupported; else None."""
    from peft import PeftConfig

    options = PeftConfig.from_pretrained(resolve_path(config.name_or_path or ""))
    if str(getattr(options.peft_type, "value", options.peft_type)) != "LORA":
        return "it is no LoRA adapter"
    modules = sorted(set(options.modules_to_save or ()) - set(HEADS))
    if modules or options.bias != "none" or options.layer_replication or options.trainable_token_indices:
        return f"it changes the base itself ({modules[0] if modules else 'biases, layers or tokens'})"
    head, _ = _weights_of(config)
    return None if "weight" in head and len(head["weight"]) == 1 else "its head is not a linear layer to one score"


def add_classifier(base: SharedBase, config: ModelConfig) -> AdapterClassifier:
    """Load the reward model of an adapter's folder onto the policy's base, frozen and without dropout.

    Raises:
        UserError: the folder has weights for which the base has no layer.
    """
    from peft import PeftConfig, set_peft_model_state_dict

    options = PeftConfig.from_pretrained(resolve_path(config.name_or_path or ""))
    options = replace(options, modules_to_save=None, task_type="CAUSAL_LM", inference_mode=True, lora_dropout=0.0)
    name = f"reward_{len(base.model.peft_config)}"
    head, weights = _weights_of(config)
    # the initial weights are replaced, but sampling them must not shift the global random state
    with adding_adapter(base.model, trains=False), seeded(0):
        base.model.add_adapter(name, options)
        report: Any = set_peft_model_state_dict(base.model, weights, adapter_name=name)
    if report.unexpected_keys:
        raise UserError(
            f"the adapter {config.name_or_path} does not fit the policy's base, which has no layer for "
            f"{report.unexpected_keys[0]}; set model.share_base to false to load a separate base"
        )
    dtype = language_model(base.model).get_input_embeddings().weight.dtype
    bias = head["bias"].to(dtype) if "bias" in head else None
    model_config = load_model_config(config)
    adopt_normalization(model_config, config)
    return AdapterClassifier(base.model, name, head["weight"].to(dtype), bias, model_config)


def _weights_of(config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load weight and bias of the head, and the other weights of an adapter's folder."""
    path = Path(resolve_path(config.name_or_path or "")) / "adapter_model.safetensors"
    weights = load_file(path) if path.is_file() else {}
    head = {name for name in weights if name.split(".")[-2] in HEADS}
    return {name.split(".")[-1]: weights[name] for name in head}, {n: x for n, x in weights.items() if n not in head}
