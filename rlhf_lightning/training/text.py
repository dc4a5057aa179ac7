"""Tokenizer and encoder of a stage on a language model; a stage without a language model has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf_lightning.console import print_once
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.export import export_model, sub_state
from rlhf_lightning.models.loading import ModelConfig, load_encoder


class TextEncoding:
    """Loads and holds the encoder of a language model, without the weights of the model."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._encoder: Encoder | None = None

    def load(self, max_prompt_length: int | None = None) -> None:
        """Load tokenizer, stop tokens and context length of the model.

        Args:
            max_prompt_length: tokens; longer prompts lose their beginning.
        """
        self._encoder = load_encoder(self.config, max_prompt_length)

    @property
    def encoder(self) -> Encoder:
        """The encoder; available from `setup` on."""
        assert self._encoder is not None
        return self._encoder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; available from `setup` on."""
        return self.encoder.tokenizer

    def export(
        self,
        model: nn.Module,
        folder: Path,
        state: dict[str, Tensor] | None,
        files: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        """Save the model (or its adapter), tokenizer and generation config in Hugging Face form.

        Args:
            model: the language model.
            folder: where to.
            state: full weights of the network under whose name `model` it is, where it is sharded.
            files: tensors of further safetensors files, by the name of the file.
        """
        export_model(model, self.tokenizer, folder, self.encoder.stop_tokens, sub_state(state, "model."), files)

    def report_truncated(self) -> None:
        """Print how many texts were truncated since the last call."""
        if self._encoder is None:
            return
        for kind, count in self._encoder.truncated_counts.items():
            print_once(f"truncated to fit: {count} {kind}, counted each time they were read")
        self._encoder.truncated_counts.clear()
