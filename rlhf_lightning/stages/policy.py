"""Policy optimisation: rollouts, an algorithm, and the training loop of Lightning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.console import print_once
from rlhf_lightning.data.screening import Screening
from rlhf_lightning.distributed import all_gather, shard_places
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import row_mean
from rlhf_lightning.functional.preference_losses import preference_agreement
from rlhf_lightning.functional.statistics import separation
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.critics import save_critic
from rlhf_lightning.models.encoding import Encoded
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import ReferenceKind, ReferenceModel
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.rollouts.collector import ReferenceLogprobs, mean_score
from rlhf_lightning.rollouts.labels import encoded_label, with_mismatched
from rlhf_lightning.rollouts.preferences import encoded_pair
from rlhf_lightning.rollouts.recorded import PolicyCollector
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import PREDICTION, Randomness
from rlhf_lightning.stages.rollout import RolloutStage
from rlhf_lightning.training.checks import check_minimum
from rlhf_lightning.training.correction import Correction
from rlhf_lightning.training.network import sharded_by_strategy
from rlhf_lightning.training.nonfinite import OnNonFinite
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.training.predictions import Predictor
from rlhf_lightning.training.requirements import RECORDED_COLUMNS, check_correction, check_monitors, check_recorded
from rlhf_lightning.training.rewards import check_rewards, load_rewards
from rlhf_lightning.training.roles import Roles
from rlhf_lightning.training.rollout_session import OnUnscored
from rlhf_lightning.training.rows import check_reward_columns, screen_visible, visible_rows
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.types import Completions, RawRows, Rollout


class PolicyStage(RolloutStage):
    """Optimise a policy with any algorithm, against a reward on its own responses, or on recorded preference pairs.

    Override `loss`, `measure`, `predict` and `export`; see `rlhf_lightning.stages`. Rows become batches by the collector, so
    `encode` is not called.

    Args:
        policy: the language model to align.
        algorithm: PPO, DPO, REINFORCE, GRPO or one of your own.
        reward: scores generated responses; without one the data must hold preference pairs, and nothing is generated.
        reference: model for the KL penalty: a quantised copy (nf4, int8), a full copy, or the base under the adapter;
            auto is adapter for a LoRA policy, else nf4; none builds no reference, for algorithms that read none. Or another
            model of the same vocabulary, such as a teacher: {name_or_path: …}.
        critic: a head on the policy's backbone, or a backbone of its own; for algorithms that need values.
        share_base: in a LoRA run a critic with a backbone of its own, and reward models that are adapters of the policy's base,
            are further adapters on that one base; False loads a model for each.
        generation: generates responses.
        evaluation_rewards: further rewards, measured in validation only, each as `val/reward/<name>`.
        overlap: slices of a rollout, each scored while the next is generated; for a reward that is a function or a server.
        iterations: rollouts per Lightning epoch; by default one pass over the prompts.
        max_prompt_length: tokens; longer prompts lose their beginning.
        max_length: tokens of prompt and recorded response together; longer pairs are truncated.
        predict_temperature: temperature of `predict`; 0 is greedy.
        predict_responses: responses of `predict` to each prompt.
        predict_score: score the responses of `predict` with `reward`; of several responses to a prompt the best and the worst
            become a row of `preferences.jsonl`, which `PreferenceData` reads.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: stop the run at a step with a NaN or an infinity, or skip the step and count it.
        on_unscored: stop the run at a rollout in which the reward scores no response, or warn and skip the rollout.
        correction: importance weights on the advantages, for a generator that is an engine of its own; by default those of
            `Correction` where there is such an engine.
    """

    shown_metrics = ("reward/mean", "kl/reference", "preference/accuracy")
    text: TextEncoding

    def __init__(
        self,
        policy: ModelConfig,
        algorithm: Algorithm,
        reward: Reward | None = None,
        reference: ReferenceKind | ReferenceModel = "auto",
        critic: Literal["shared", "separate"] = "shared",
        share_base: bool = True,
        generation: Generator = Sampler(),  # noqa: B008  (never changed)
        evaluation_rewards: dict[str, Reward] | None = None,
        overlap: int = 1,
        iterations: int | None = None,
        max_prompt_length: int | None = None,
        max_length: int | None = None,
        predict_temperature: float = 0.0,
        predict_responses: int = 1,
        predict_score: bool = False,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
        on_unscored: OnUnscored = "stop",
        correction: Correction | None = None,
    ) -> None:
        super().__init__(
            algorithm, optimizer, lr_scheduler, on_nonfinite, on_unscored, iterations,
            TextEncoding(policy), policy.max_tokens_per_batch, correction,
        )  # fmt: skip
        reward = as_reward(reward)
        held_out = {name: as_reward(each) for name, each in (evaluation_rewards or {}).items()}
        if reward is None and predict_score:
            raise UserError("predict_score is true and there is no reward: set model.reward, or remove predict_score")
        check_correction(correction, generation)
        check_minimum(1, max_prompt_length=max_prompt_length)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        self.reward, self.generation = reward, generation
        self.max_prompt_length, self.max_length = max_prompt_length, max_length
        self.predictor = Predictor(predict_temperature, predict_responses, reward if predict_score else None)
        self.policy: Policy | None = None
        self._labelled: list[Tensor] = []
        self.roles = Roles(
            self, self.text, algorithm, generation,
            reward=reward, evaluation_rewards=held_out, reference=reference, critic=critic,
            share_base=share_base, overlap=overlap, max_length=max_length,
        )  # fmt: skip
        self.resume.per_rank |= {f"reward/{name}": each for name, each in self.rewards.items()}

    # -- before training -----------------------------------------------------------------------------------------------

    @property
    def rewards(self) -> dict[str, Reward]:
        """The reward that trains, under the name `mean`, and the rewards that validation measures."""
        return self.roles.rewards

    @property
    def validation_rewards(self) -> dict[str, Reward]:
        """The rewards that validation measures."""
        return self.roles.rewards

    @property
    def response_generator(self) -> ResponseGenerator:
        """Generates responses with the present weights of the policy."""
        return self.roles.response_generator

    def setup(self, stage: str) -> None:
        """Load the tokenizer, check rewards and rows, and bind the loaders, before any weight is loaded."""
        self.roles.start_setup()
        check_monitors(self.trainer, self.roles.reference_kind)
        if stage == "fit" and not self.roles.is_recorded:
            self.generation.check_rollouts()
        self.validation.best |= check_rewards(self.rewards)
        training, predicting = ([] if each is None else [each] for each in (self.reward, self.predictor.reward))
        check_reward_columns(self.trainer, training, self.rewards.values(), predicting)
        self.text.load(self.max_prompt_length)
        if isinstance(self.roles.reference_kind, ReferenceModel):
            self.roles.reference_kind.check_vocabulary(self.text.tokenizer)
        self.bind_loaders()
        if self._reads_recorded:
            check_recorded(self.trainer, self.algorithm, self.roles.source)
        self.screen_rows()
        for name, rows in visible_rows(self.trainer):
            self.text.encoder.check_prompts(rows, self.generation.max_new_tokens, name)
        self.rollouts.check_minibatches()

    @property
    def _reads_recorded(self) -> bool:
        return self.roles.is_recorded and not self.trainer.predicting

    def screen_rows(self) -> dict[str, Screening]:
        """Encode every row once before weights are loaded; see `screen`."""
        read = ("prompt", *RECORDED_COLUMNS.get(self.roles.source, ()))
        return screen_visible(self.trainer, self.text.encoder, self.encoded, read, self.rewards.values())

    def encoded(self, row: dict[str, Any]) -> list[Encoded]:
        """Encode a recorded row, or a prompt; count a prompt that leaves no room for a response where such are dropped."""
        if self._reads_recorded:
            encode = encoded_pair if self.roles.source == "pairs" else encoded_label
            return encode(self.text.encoder, row, self.max_length)
        drops = getattr(self.trainer.datamodule, "on_too_long", "truncate") == "drop"  # type: ignore[attr-defined]
        return self.text.encoder.prompts_with_room(row["prompt"], self.generation.max_new_tokens, drops)

    def configure_model(self) -> None:
        """Load the policy and, where the algorithm needs values, the critic."""
        if self.policy is None:
            self.policy = sharded_by_strategy(self, self.roles.build_policy())

    @property
    def network(self) -> Policy:
        """The policy with its critic."""
        assert self.policy is not None
        return self.policy

    def on_fit_start(self) -> None:
        """Load the frozen models: reference and rewards; fill the cache of a reference of recorded rows."""
        super().on_fit_start()
        assert self.collector is not None
        self.roles.fill_reference(self.collector.reference, self.resume.weights_changed)

    # -- models --------------------------------------------------------------------------------------------------------

    def actor(self) -> Policy:
        """Return the policy with its critic."""
        return self.network

    def generator(self) -> ResponseGenerator:
        """Return the source of rollouts: as `response_generator`, from the distribution that rollouts are sampled of."""
        return replace(self.response_generator, truncate=self.generation.truncate_rollouts is True)

    def judge(self) -> Reward | None:
        """Return the reward that trains."""
        return self.reward

    def reference(self) -> ReferenceLogprobs | None:
        """Build the reference model; for recorded rows a cache of what it says; for the kind `none` nothing."""
        return self.roles.reference()

    def build_collector(self) -> PolicyCollector:
        """Load reward models and reference, and build the collector that asks them."""
        load_rewards(self.rewards, self.device)
        generation, overlap = self.generation, self.roles.overlap
        frozen = (self.judge(), self.reference())
        return PolicyCollector(self.generator(), *frozen, generation.temperature, overlap, generation.separate_engine)

    @property
    def is_recorded(self) -> bool:
        """Rollouts are made of recorded pairs or labelled responses."""
        return self.roles.is_recorded

    @property
    def responses_per_row(self) -> int:
        """Rows of a rollout per prompt, pair or labelled response."""
        per_row = {"pairs": 2, "labels": 1 + self.algorithm.mismatched_rows}
        return per_row.get(self.roles.source, super().responses_per_row)

    def read_rows(self, batch: Any) -> RawRows:
        """Turn a batch of the data loader into rows; give labelled ones a mismatched response where the algorithm wants it."""
        rows = super().read_rows(batch)
        if self.roles.source == "labels" and self.algorithm.mismatched_rows and self.trainer.training:
            return with_mismatched(rows)
        return rows

    def recorded_rollout(self, rows: RawRows, count: bool, policy: bool) -> Rollout:
        """Make a rollout of recorded pairs or labelled responses."""
        assert isinstance(self.collector, PolicyCollector)
        return self.collector.recorded(rows, self.max_length, self.device, count, policy, self.roles.source == "labels")

    # -- held-out rows -------------------------------------------------------------------------------------------------

    def measure(self, rows: RawRows) -> None:
        """Generate one response per held-out prompt and score it; compare recorded pairs where there are any."""
        completions = self.roles.response_generator.generate(rows, 1, self.validation.randomness(rows))
        self.validation.held_out.add_completions(completions, self.rewards)
        if not self.roles.is_recorded:
            self._measure_kl(completions)
        elif "chosen" in rows[0]:
            self._measure_pairs(rows)
        elif "label" in rows[0]:
            self._measure_labels(rows)

    def _measure_kl(self, completions: Completions) -> None:
        assert self.collector is not None
        if self.collector.reference is None:
            return
        logprobs, held_out = self.network(completions).logprobs, self.validation.held_out
        rows = (completions.tokens, completions.prompt_mask, completions.mask)
        reference = self.collector.reference.logprobs(*rows, self.generation.temperature)
        held_out.add("kl/reference", kl_estimate(logprobs, reference)[completions.mask].tolist())
        if self._is_before_training:
            held_out.add("reference/gap", kl_estimate(logprobs, reference, "k3")[completions.mask].tolist())

    def _measure_pairs(self, rows: RawRows) -> None:
        assert isinstance(self.collector, PolicyCollector)
        pairs = self.collector.pairs(rows, self.max_length, self.device)
        drift = _row_drift(pairs)
        margin = drift[0::2] - drift[1::2]
        self.validation.held_out.add("preference/margin", margin.tolist())
        assert pairs.preferences is not None
        decided = margin[pairs.preferences[0::2] != 0.5]
        self.validation.held_out.add("preference/accuracy", preference_agreement(decided).tolist())

    def _measure_labels(self, rows: RawRows) -> None:
        assert isinstance(self.collector, PolicyCollector)
        labelled = self.collector.labels(rows, self.max_length, self.device)
        self._labelled.append(torch.stack([_row_drift(labelled), labelled.rewards]).cpu())

    def further_metrics(self) -> dict[str, float]:
        """Return how well log-probabilities tell good held-out responses from bad ones, over all ranks."""
        found = [each for of_rank in all_gather(self._labelled) for each in of_rank]
        self._labelled = []
        if not found:
            return {}
        drift, good = torch.cat(found, dim=1)
        nearest = (drift * 1e4).round()  # two passes over the same weights differ by less, and are ties
        return {"label/accuracy": separation(nearest, good > 0.5)}

    @property
    def _is_before_training(self) -> bool:
        return self.trainer.global_step == 0 and self.trainer.state.fn == "fit"

    def on_validation_epoch_end(self) -> None:
        """Log the held-out metrics; before the first step also the gap between policy and reference."""
        gaps = self.validation.held_out.numbers.pop("reference/gap", [])
        super().on_validation_epoch_end()
        gap = float(mean_score(gaps, self.device))
        if self.roles.measures_gap and self._is_before_training:
            self._report_gap(gap)

    def _report_gap(self, gap: float) -> None:
        self.metric_log.tell_loggers({"reference/gap": gap})
        target = self.algorithm.kl_target
        if target is not None and gap > 0.1 * target:
            print_once(
                f"warning: reference/gap is {gap:.4f} nats per token before the first step, more than a tenth of the KL target "
                f"{target}; set model.reference to int8 or full, or raise the target"
            )

    def on_predict_start(self) -> None:
        """Load the reward, where predictions are scored."""
        self.predictor.start(self.generation, self.device)

    def predict(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """Generate responses to each prompt, one and greedy by default, and keep the columns of its row."""
        randomness = Randomness(PREDICTION, index, shard_places(len(rows)))
        return self.predictor.predict(self.roles.response_generator, rows, randomness)

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the policy (or its adapter), tokenizer and generation config; the critic beside it."""
        self.text.export(self.network.model, folder, state)
        if self.network.critic is not None:
            save_critic(self.network, state, folder / "critic.safetensors")


def _row_drift(pairs: Rollout) -> Tensor:
    """Return float32 [B], by which held-out responses are compared: Σ (log π - log ref), or mean log π without a reference."""
    if pairs.reference_logprobs is None:
        return row_mean(pairs.logprobs, pairs.mask)
    return ((pairs.logprobs - pairs.reference_logprobs) * pairs.mask).sum(-1)
