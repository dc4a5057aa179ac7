"""Supervised fine-tuning: token-mean cross-entropy over the whole optimiser step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rlhf_lightning.data.screening import Screening
from rlhf_lightning.distributed import shard_places
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.conversation import learned_turns
from rlhf_lightning.models.encoding import Encoded, recorded_rows
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import PREDICTION, Randomness
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.training.checks import check_minimum
from rlhf_lightning.training.network import sharded_by_strategy
from rlhf_lightning.training.nonfinite import OnNonFinite
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.training.predictions import Predictor
from rlhf_lightning.training.rewards import check_rewards, load_rewards
from rlhf_lightning.training.rows import check_reward_columns, screen_visible
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.types import InstructionBatch, LossOutput, RawRows

READ = ("prompt", "completion", "messages")
"""Columns that this stage reads."""


class SupervisedStage(Stage):
    """Teach a model to generate the completions of a data set.

    Override `encode`, `loss`, `measure`, `predict` and `export`; see `rlhf_lightning.stages`.

    Args:
        model: the language model to train.
        completion_only: the loss is on completions only; False trains on the prompts too, and on what a conversation has
            between its completions.
        max_length: tokens of prompt and completion together; longer rows lose the beginning of the prompt, then the end.
        generation: generates responses in validation and `predict`.
        evaluation_rewards: rewards measured on responses to held-out prompts, as `val/reward/<name>`.
        predict_temperature: temperature of `predict`; 0 is greedy.
        predict_responses: responses of `predict` to each prompt.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: stop the run at a step with a NaN or an infinity, or skip the step and count it.
    """

    text: TextEncoding

    def __init__(
        self,
        model: ModelConfig,
        completion_only: bool = True,
        max_length: int | None = None,
        generation: Generator = Sampler(),  # noqa: B008  (never changed)
        evaluation_rewards: dict[str, Reward] | None = None,
        predict_temperature: float = 0.0,
        predict_responses: int = 1,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, on_nonfinite, TextEncoding(model), model.max_tokens_per_batch)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        self.completion_only, self.max_length, self.generation = completion_only, max_length, generation
        self.evaluation_rewards = {name: as_reward(each) for name, each in (evaluation_rewards or {}).items()}
        self.predictor = Predictor(predict_temperature, predict_responses)
        self.policy: Policy | None = None

    def setup(self, stage: str) -> None:
        """Load the tokenizer, check rows and rewards, and bind the loaders, before any weight is loaded."""
        self.check_rows(turns, "columns prompt and completion, or messages, as InstructionData gives them")
        self.text.load()
        self.validation.best |= check_rewards(self.evaluation_rewards)
        check_reward_columns(self.trainer, (), self.evaluation_rewards.values())
        self.screen_rows()
        self.bind_loaders()

    def screen_rows(self) -> dict[str, Screening]:
        """Encode every row once before weights are loaded; see `screen`."""
        return screen_visible(self.trainer, self.text.encoder, self.encoded, READ, self.evaluation_rewards.values())

    def encoded(self, row: dict[str, Any]) -> list[Encoded]:
        """Encode the learned turns of a row, truncated to `max_length`; see `Encoder.learned`."""
        return self.text.encoder.learned(*prompt_and_completion(row), self.max_length)

    def configure_model(self) -> None:
        """Load the model."""
        if self.policy is None:
            self.policy = sharded_by_strategy(self, Policy(load_causal_lm(self.text.config)))

    @property
    def network(self) -> Policy:
        """The model."""
        assert self.policy is not None
        return self.policy

    def encode(self, rows: RawRows) -> InstructionBatch:
        """Encode rows; what a conversation has between its learned turns is read, and learned without `completion_only`."""
        prompts, completions, masks = [], [], []
        for found in (each for row in rows for each in self.encoded(row)):
            kept = len(found.prompt) if self.completion_only else 1
            prompts.append(found.prompt[:kept])
            completions.append(found.prompt[kept:] + found.response)
            learned = found.mask if self.completion_only else [True] * len(found.mask)
            masks.append([True] * (len(found.prompt) - kept) + learned)
        encoder, groups = self.text.encoder, list(range(len(prompts)))
        pad = self.text.tokenizer.pad_token_id
        encoded = recorded_rows(prompts, completions, groups, encoder.stop_tokens, pad, masks)
        return InstructionBatch(**encoded.tensors())

    def loss(self, batch: InstructionBatch) -> LossOutput:
        """Return minus the log-probability of all completion tokens."""
        nats = -masked_sum(self.network(batch).logprobs, batch.mask)
        return LossOutput(nats, {"loss/policy": (nats.detach(), batch.mask.sum())})

    def on_validation_start(self) -> None:
        """Load the rewards that validation measures."""
        load_rewards(self.evaluation_rewards, self.device)

    on_test_start = on_validation_start

    def measure(self, rows: RawRows) -> None:
        """Measure the loss on held-out completions, and generate one response per prompt."""
        batch = self.encode(rows).to(self.device)
        logprobs = self.network(batch).logprobs
        self.validation.held_out.add("loss/policy", (-logprobs[batch.mask]).tolist())
        prompts = [first_turn(row) for row in rows]
        generated = self.response_generator.generate(prompts, 1, self.validation.randomness(rows))
        self.validation.held_out.add_completions(generated, self.evaluation_rewards)

    @property
    def validation_rewards(self) -> dict[str, Reward]:
        """The evaluation rewards."""
        return self.evaluation_rewards

    @property
    def response_generator(self) -> ResponseGenerator:
        """Generates responses; prompts that leave no room for one lose their beginning."""
        room = self.text.encoder.room(self.generation.max_new_tokens)
        return ResponseGenerator(self.network, self.generation, replace(self.text.encoder, max_prompt_length=room))

    def on_predict_start(self) -> None:
        """Report options that have no effect on predictions."""
        self.predictor.start(self.generation, self.device)

    def predict(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """Generate responses to each prompt, one and greedy by default."""
        randomness = Randomness(PREDICTION, index, shard_places(len(rows)))
        return self.predictor.predict(self.response_generator, [first_turn(row) for row in rows], randomness)

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the model (or its adapter), tokenizer and generation config."""
        self.text.export(self.network.model, folder, state)


def prompt_and_completion(row: dict[str, Any]) -> tuple[Any, Any]:
    """Return a row's prompt and completion; of a conversation no prompt, and the whole of it.

    >>> prompt_and_completion({"prompt": "2+2?", "completion": "4"})
    ('2+2?', '4')
    """
    return (row["prompt"], row["completion"]) if "messages" not in row else ([], row["messages"])


def turns(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Split a row into (prompt, completion); a conversation gives one for every learned turn of the assistant."""
    return learned_turns(*prompt_and_completion(row))


def first_turn(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the prompt of its first completion."""
    return {**row, "prompt": turns(row)[0][0]}
