"""Export a model so that plain transformers and peft load it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf_lightning.io import apply_umask
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.quantization import dequantize_
from rlhf_lightning.models.reward_model import NORMALIZATION_FILE, score_normalization


def export_model(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    stop_tokens: list[int],
    state: dict[str, Tensor] | None = None,
    files: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Save weights (or the adapter's weights) as safetensors, config, generation config and tokenizer, all or nothing.

    The files are written beside `folder` and then renamed, so an earlier export stays until the new one is complete.
    An adapter's folder names its base by absolute path. A base from scratch or with separated weights (`tied_weights`) has
    no folder, so it is saved in `base/`, without quantisation.

    Args:
        model: a transformers model, or a peft model around one.
        tokenizer: saved with the model, chat template included.
        folder: created or replaced.
        stop_tokens: ids that end a response, for the generation config.
        state: the gathered weights of a sharded model; None reads them from the model.
        files: tensors of further safetensors files, by the name of the file.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's advice on where adapters are kept
            if is_adapted(model):
                _save_adapter(model, partial, folder, state)
            else:
                model.save_pretrained(partial, **({} if state is None else {"state_dict": _tied(model, state)}))
        _save_generation(language_model(model), tokenizer, stop_tokens, partial)
        tokenizer.save_pretrained(partial)
        for name, tensors in (files or {}).items():
            save_file(tensors, partial / name, metadata={"format": "pt"})
        for path in (partial, *partial.rglob("*.safetensors")):
            apply_umask(path)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def add_model_card(trainer: Any, stage: Any, folder: Path, metrics: Any = None) -> None:
    """Have the callback that knows the run put a model card into an export; on rank 0, without one in a trainer of one's own."""
    for callback in trainer.callbacks:
        if hasattr(callback, "write_model_card"):
            callback.write_model_card(trainer, stage, folder, metrics)


def sub_state(state: dict[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """Select the entries whose names begin with `prefix`, and remove it; None for None."""
    return state and {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def _save_adapter(model: Any, partial: Path, folder: Path, state: dict[str, Tensor] | None) -> None:
    options = model.peft_config["default"]
    original = options.base_model_name_or_path
    base = language_model(model).config.name_or_path
    if not base:
        _save_base(model, partial / "base", state)
        base = str(folder / "base")
    options.base_model_name_or_path = os.path.abspath(base) if Path(base).is_dir() else base
    try:
        weights = {} if state is None else {"state_dict": state}
        model.save_pretrained(partial, selected_adapters=["default"], save_embedding_layers=False, **weights)
        (partial / "README.md").unlink(missing_ok=True)  # peft's model card is an empty template
    finally:
        options.base_model_name_or_path = original
    normalization = score_normalization(model)
    if normalization:  # no config.json, with which transformers would load the folder as a full model
        (partial / NORMALIZATION_FILE).write_text(json.dumps(normalization, indent=2) + "\n")


def _save_base(model: Any, folder: Path, state: dict[str, Tensor] | None) -> None:
    if state is None:
        bare: Any = copy.deepcopy(model).unload()
        dequantize_(bare)
        bare.save_pretrained(folder)
        return
    lm = language_model(model)
    with torch.device("meta"):
        bare = type(lm)(copy.deepcopy(lm.config))
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."): x
        for name, x in state.items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    bare.save_pretrained(folder, state_dict=_tied(bare, kept))


def _tied(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Use one tensor for tied weights, because gathering copies them and both copies would be saved."""
    source = getattr(model, "all_tied_weights_keys", {})
    return {name: state.get(source.get(name, name), x) for name, x in state.items()}


def _save_generation(lm: Any, tokenizer: Any, stop_tokens: list[int], folder: Path) -> None:
    """Save stop and pad tokens only; penalties of the original model would change the trained distribution."""
    from transformers import GenerationConfig

    if getattr(lm, "generation_config", None) is not None:
        ends, pad, begins = list(stop_tokens), tokenizer.pad_token_id, tokenizer.bos_token_id
        GenerationConfig(eos_token_id=ends, pad_token_id=pad, bos_token_id=begins).save_pretrained(folder)


def _replace(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
