"""Supervised fine-tuning: token-mean cross-entropy over the whole optimiser step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.export import export_model, sub_state
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.rollouts.step_loader import StepLoader
from rlhf_lightning.stages.stage import OnNonFinite, Stage, check_minimum
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.types import InstructionBatch, LossOutput, RawRows


class SupervisedStage(Stage):
    """Teach a model to write the completions of a data set.

    Args:
        model: the language model to train.
        completion_only: the loss is on completions only; False trains on the prompts too.
        max_length: tokens of prompt and completion together; longer rows lose the beginning of the prompt, then the end.
        generation: how validation and `predict` write.
        evaluation_rewards: rewards measured on what the model writes to held-out prompts, as `val/reward/<name>`.
        predict_temperature: of `predict`; 0 is greedy.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: what a step with a NaN or an infinity does: stop the run, or be skipped and counted.
    """

    def __init__(
        self,
        model: ModelConfig,
        completion_only: bool = True,
        max_length: int | None = None,
        generation: Generator = Sampler(),  # noqa: B008  (never changed)
        evaluation_rewards: dict[str, Reward] | None = None,
        predict_temperature: float = 0.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(model, optimizer, lr_scheduler, on_nonfinite)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        self.completion_only, self.max_length, self.generation = completion_only, max_length, generation
        self.evaluation_rewards = {name: as_reward(each) for name, each in (evaluation_rewards or {}).items()}
        self.predict_temperature = predict_temperature
        self.policy: Policy | None = None

    def setup(self, stage: str) -> None:
        """Tokenizer, checks, loaders."""
        self.check_rows(turns, "columns prompt and completion, or messages, as InstructionData gives them")
        self.encoder = self.load_encoder()
        self.check_rewards(self.evaluation_rewards)
        self.check_columns((), self.evaluation_rewards.values())
        self.wrap_loaders(self._train_loader)

    def configure_model(self) -> None:
        """Load the model."""
        if self.policy is None:
            self.policy = self.placed(Policy(load_causal_lm(self.config)))

    @property
    def network(self) -> Policy:
        """The model."""
        assert self.policy is not None
        return self.policy

    def _train_loader(self, loader: Iterable[Any]) -> StepLoader:
        source = RowSource(loader, int(torch.initial_seed() % 2**31))
        return StepLoader(
            source, self.encode, lambda batch: batch.mask.sum(), self.accumulate, **self.epoch_of(len(source))
        )

    def encode(self, rows: RawRows) -> InstructionBatch:
        """Rows → token ids; every turn of the assistant in a conversation is a completion of what stands before it."""
        pairs = [pair for row in rows for pair in turns(row)]
        prompts, completions = [], []
        for prompt, completion in pairs:
            ids = self.encoder_of_run.pair(
                self.encoder_of_run.prompt(prompt), self.encoder_of_run.response(prompt, completion), self.max_length
            )
            if not self.completion_only:
                ids = (ids[0][:1], ids[0][1:] + ids[1])
            prompts.append(ids[0])
            completions.append(ids[1])
        found = recorded_rows(
            prompts, completions, list(range(len(pairs))), self.encoder_of_run.stop_tokens, self.tokenizer.pad_token_id
        )
        return InstructionBatch(**found.tensors())

    def training_step(self, batch: InstructionBatch, index: int) -> Tensor:
        """Minus the log-probability of every completion token, divided by those of the whole step."""
        return self.backward_loss(batch, self._loss)

    def _loss(self, batch: InstructionBatch) -> LossOutput:
        nats = -masked_sum(self.policy(batch).logprobs, batch.mask)  # type: ignore[misc]
        return LossOutput(nats, {"loss/policy": (nats.detach(), batch.mask.sum())})

    def on_train_batch_end(self, outputs: Any, batch: InstructionBatch, batch_idx: int) -> None:
        """Log what the optimiser step measured, over all ranks."""
        self.report_step(shown=("loss/policy",))

    def on_validation_start(self) -> None:
        """Load the rewards that validation measures."""
        self.load_rewards(self.evaluation_rewards)

    on_test_start = on_validation_start

    def measure_rows(self, rows: RawRows) -> None:
        """Loss on the held-out completions; one response to each of their prompts."""
        batch = self.encode(rows).to(self.device)
        logprobs = self.policy(batch).logprobs  # type: ignore[misc]
        self.held_out.add("loss/policy", (-logprobs[batch.mask]).tolist())
        generated = self._response_generator.generate([first_turn(row) for row in rows], 1, self.sampler)
        self.held_out.add_completions(generated, self.evaluation_rewards)

    @property
    def _response_generator(self) -> ResponseGenerator:
        """Prompts lose their beginning here too where they are too long."""
        assert self.policy is not None
        room = self.encoder_of_run.room(self.generation.max_new_tokens)
        return ResponseGenerator(self.policy, self.generation, replace(self.encoder_of_run, max_prompt_length=room))

    def predict_rows(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """One completion a prompt, greedy by default."""
        generator = torch.Generator(self.device).manual_seed(index)
        generated = self._response_generator.generate(
            [first_turn(row) for row in rows], 1, generator, self.predict_temperature
        )
        return [
            {**row, "prompt": p, "response": r}
            for row, p, r in zip(rows, generated.prompts, generated.responses, strict=True)
        ]

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """The model (or its adapter), tokenizer and generation config."""
        assert self.policy is not None
        export_model(
            self.policy.model, self.tokenizer, folder, self.encoder_of_run.stop_tokens, sub_state(state, "model.")
        )


def turns(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(prompt, completion) of a row; a conversation gives one for every turn of the assistant.

    >>> turns({"prompt": "2+2?", "completion": "4"})
    [('2+2?', '4')]
    """
    if "messages" not in row:
        return [(row["prompt"], row["completion"])]
    messages = row["messages"]
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
    return [(messages[:i], [messages[i]]) for i in spoken]


def first_turn(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the prompt of its first completion, to write a response to."""
    return {**row, "prompt": turns(row)[0][0]}
