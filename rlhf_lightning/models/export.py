"""Writing a model so that plain transformers (and peft) load it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.policy import language_model


def export_model(model: Any, tokenizer: Any, folder: Path, stop_tokens: list[int]) -> None:
    """Weights as safetensors (of an adapter, the adapter's), config, generation config and tokenizer, all or nothing.

    Everything is written beside `folder` and then moved there; what was there before stays until the new is whole.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        inner = language_model(model)
        if getattr(inner, "generation_config", None) is not None:
            inner.generation_config.update(eos_token_id=stop_tokens, pad_token_id=tokenizer.pad_token_id)
        if is_adapted(model):
            model.save_pretrained(partial, selected_adapters=["default"], save_embedding_layers=False)
            if getattr(inner, "generation_config", None) is not None:
                inner.generation_config.save_pretrained(partial)
        else:
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        os.chmod(partial, 0o755)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}-old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
