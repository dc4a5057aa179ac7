"""One base for several roles: beside the policy's adapter that of a critic, which trains, and frozen ones of reward models."""

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
from rlhf_lightning.models.loading import ModelConfig, adopt_normalization, load_model_config, resolve_path
from rlhf_lightning.models.paths import base_path, is_adapter
from rlhf_lightning.seeding import seeded

CRITIC = "critic"
"""Name of a critic's adapter."""
HEADS = ("score", "classifier")
"""Names of a classifier's head in an adapter's folder."""


@dataclass(frozen=True)
class SharedBase:
    """The policy's model, a base under an adapter, on which other roles may lie."""

    model: Any
    """A peft model, not yet cut over ranks."""
    config: ModelConfig
    """Of the policy."""


def add_critic_adapter(base: SharedBase) -> None:
    """A second adapter that trains, begun as the policy's: as `policy.lora` says, or from the folder of the one that goes on."""
    folder = resolve_path(base.config.name_or_path) if base.config.name_or_path else ""
    with adding_adapter(base.model, trains=True), seeded(base.config.seed):
        if is_adapter(folder):
            base.model.load_adapter(folder, adapter_name=CRITIC, is_trainable=True)
            without_dropout(base.model, (CRITIC,))
        else:
            base.model.add_adapter(CRITIC, copy.deepcopy(base.model.peft_config["default"]))


def adapter_weights(model: Any, name: str, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """An adapter's weights under peft's names; from `state`, by their names in `model`, where the model is sharded."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


class AdapterBackbone:
    """The trunk of a peft model with one of its adapters on; all else is the trunk's.

    The base is no part of what holds this: it is the policy's to move, to cut and to save.
    """

    def __init__(self, model: Any, adapter: str) -> None:
        self.model, self.adapter = model, adapter

    def __call__(self, **inputs: Any) -> Any:
        """As the trunk."""
        with adapter_view(self.model, [self.adapter]):
            return backbone_of(self.model)(**inputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks of an object that has no attributes yet
            raise AttributeError(name)
        return getattr(backbone_of(self.model), name)


class AdapterClassifier(nn.Module):
    """A reward model as a frozen adapter on the policy's base, with the head and the config of its own; see `score_rows`."""

    def __init__(self, model: Any, adapter: str, head: Tensor, bias: Tensor | None, config: Any) -> None:
        super().__init__()
        self.base_model, self.config = AdapterBackbone(model, adapter), config
        self.score = _Head(head, bias)


class _Head(nn.Module):
    """A linear layer to one number, in the type of its own weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, H] → [B, 1]."""
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def shares_base_with(base: SharedBase, config: ModelConfig) -> bool:
    """`config` names the folder of an adapter whose base is the policy's."""
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
    """Why an adapter cannot lie beside others on a base: it changes more than they could bear, or is not understood."""
    from peft import PeftConfig

    options = PeftConfig.from_pretrained(resolve_path(config.name_or_path or ""))
    if str(getattr(options.peft_type, "value", options.peft_type)) != "LORA":
        return "it is no LoRA adapter"
    more = sorted(set(options.modules_to_save or ()) - set(HEADS))
    if more or options.bias != "none" or options.layer_replication or options.trainable_token_indices:
        return f"it changes the base itself ({more[0] if more else 'biases, layers or tokens'})"
    head, _ = _weights_of(config)
    return None if "weight" in head and len(head["weight"]) == 1 else "its head is not a linear layer to one score"


def add_classifier(base: SharedBase, config: ModelConfig) -> AdapterClassifier:
    """The reward model of an adapter's folder, on the policy's base: frozen, without dropout, under a name of its own.

    Raises:
        UserError: the folder has weights that the base has no place for.
    """
    from peft import PeftConfig, set_peft_model_state_dict

    options = PeftConfig.from_pretrained(resolve_path(config.name_or_path or ""))
    options = replace(options, modules_to_save=None, task_type="CAUSAL_LM", inference_mode=True, lora_dropout=0.0)
    name = f"reward_{len(base.model.peft_config)}"
    head, weights = _weights_of(config)
    with (
        adding_adapter(base.model, trains=False),
        seeded(0),
    ):  # what is drawn is replaced, but must not shift what others draw
        base.model.add_adapter(name, options)
        report: Any = set_peft_model_state_dict(base.model, weights, adapter_name=name)
    if report.unexpected_keys:
        raise UserError(
            f"the adapter {config.name_or_path} does not fit the policy's base: {report.unexpected_keys[0]} has no place in "
            "it; set model.share_base to false to load it as a model of its own"
        )
    dtype = language_model(base.model).get_input_embeddings().weight.dtype
    bias = head["bias"].to(dtype) if "bias" in head else None
    found = load_model_config(config)
    adopt_normalization(found, config)
    return AdapterClassifier(base.model, name, head["weight"].to(dtype), bias, found)


def _weights_of(config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weight and bias of the head, and the rest of an adapter's folder."""
    path = Path(resolve_path(config.name_or_path or "")) / "adapter_model.safetensors"
    found = load_file(path) if path.is_file() else {}
    head = {name for name in found if name.split(".")[-2] in HEADS}
    return {name.split(".")[-1]: found[name] for name in head}, {n: x for n, x in found.items() if n not in head}
