"""Policy optimisation: a rollout, an algorithm, Lightning's own loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.console import print_once
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import explained_variance
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.functional.preference_losses import preference_agreement
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.critics import AdapterCritic, SeparateCritic, SharedCritic, save_critic
from rlhf_lightning.models.export import export_model, sub_state
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import build_reference
from rlhf_lightning.models.shared_base import SharedBase, add_critic_adapter
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.rollouts.buffer import RolloutBuffer, batch_of
from rlhf_lightning.rollouts.collector import Collector, mean_score
from rlhf_lightning.rollouts.preferences import encode_pairs
from rlhf_lightning.rollouts.reference_cache import ReferenceCache
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.rollouts.rollout_loader import RolloutLoader
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.stages.stage import OnNonFinite, Stage, check_minimum, peak_memory
from rlhf_lightning.training.metrics import MetricAccumulator
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.types import Batch, Completions, LossOutput, RawRows


class PolicyStage(Stage):
    """Optimise a policy with any algorithm, against a reward on its own responses, or on recorded preference pairs.

    Args:
        policy: the language model to align.
        algorithm: PPO, DPO, REINFORCE, GRPO or one of your own.
        reward: scores what the policy writes; without one the data must hold preference pairs, and nothing is written.
        reference: what the policy is held to: a quantised copy (nf4, int8), a full copy, the base under its adapter;
            auto is adapter for a LoRA policy, else nf4.
        critic: a head on the policy's trunk, or a trunk of its own; there for algorithms that need values.
        share_base: in a LoRA run a critic with a trunk of its own, and reward models that are adapters of the policy's base,
            are further adapters on that one base; False loads a model for each.
        generation: how responses are written.
        evaluation_rewards: further rewards, measured in validation only, each as `val/reward/<name>`.
        overlap: parts of a rollout, each scored while the next is written; for a reward that is a function or a server.
        iterations: rollouts in one Lightning epoch; by default one pass over the prompts.
        max_prompt_length: tokens; longer prompts lose their beginning.
        max_length: tokens of prompt and recorded response together; longer pairs are cut.
        predict_temperature: of `predict`; 0 is greedy.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: what a step with a NaN or an infinity does: stop the run, or be skipped and counted.
    """

    def __init__(
        self,
        policy: ModelConfig,
        algorithm: Algorithm,
        reward: Reward | None = None,
        reference: Literal["auto", "nf4", "int8", "full", "adapter"] = "auto",
        critic: Literal["shared", "separate"] = "shared",
        share_base: bool = True,
        generation: Generator = Sampler(),  # noqa: B008  (never changed)
        evaluation_rewards: dict[str, Reward] | None = None,
        overlap: int = 1,
        iterations: int | None = None,
        max_prompt_length: int | None = None,
        max_length: int | None = None,
        predict_temperature: float = 0.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, on_nonfinite)
        reward = as_reward(reward)
        if reward is None and not algorithm.learns_from_pairs:
            raise UserError(
                f"{type(algorithm).__name__} learns from rewards and there is none: set model.reward, or use an algorithm "
                "that learns from recorded pairs, such as DPO"
            )
        if generation.temperature == 0:
            raise UserError("generation.temperature is 0: a policy that is always greedy explores nothing; use 1.0")
        if overlap < 1 or (overlap > 1 and not (reward and reward.scores_while_generating)):
            raise UserError(
                f"overlap is {overlap}: it must be at least 1, and more than 1 is for rewards that can be asked while the policy "
                "writes, FunctionReward and ServerReward or a WeightedSum of them"
            )
        check_minimum(1, iterations=iterations, max_prompt_length=max_prompt_length)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        self.overlap = overlap
        self.algorithm, self.reward, self.reference_kind, self.critic_kind = algorithm, reward, reference, critic
        self.generation, self.iterations, self.predict_temperature = generation, iterations, predict_temperature
        self.evaluation_rewards = {name: as_reward(each) for name, each in (evaluation_rewards or {}).items()}
        self.max_prompt_length, self.max_length, self.share_base = max_prompt_length, max_length, share_base
        self.policy: Policy | None = None
        self.collector: Collector | None = None
        self.skipping, self.reported_empty_steps, self.step_accumulator = False, False, MetricAccumulator()
        self.prepared = False
        """What is frozen is there, and has seen the rows of this `fit`, `validate` or `test`."""
        self.restored_metrics: dict[str, float] = {}

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Tokenizer, checks, loaders: everything that can go wrong before weights are loaded."""
        self.prepared = False
        self.check_rewards(self.rewards)
        self.check_columns([] if self.reward is None else [self.reward], self.rewards.values())
        self.encoder = self.load_encoder(self.max_prompt_length)
        self.wrap_loaders(self.rollout_loader)
        for name, rows in self.rows_to_check():
            self._check_rows(name, rows)
        self._check_minibatches()

    def reset_run(self) -> None:
        """Also what the rollout measured that it ended in."""
        super().reset_run()
        self.skipping, self.step_accumulator, self.restored_metrics = False, MetricAccumulator(), {}

    @property
    def rewards(self) -> dict[str, Reward]:
        """The reward that trains, under the name `mean`, and those that only measure."""
        return {**({} if self.reward is None else {"mean": self.reward}), **self.evaluation_rewards}

    def _check_rows(self, name: str, rows: Any) -> None:
        wants_pairs = self.reward is None and not self.trainer.predicting
        if wants_pairs and len(rows) and "chosen" not in rows[0]:
            raise UserError(
                f"{type(self.algorithm).__name__} has no reward and the {name} has no pairs (columns: "
                f"{', '.join(sorted(rows[0]))}): set model.reward, or use PreferenceData"
            )
        self.encoder_of_run.check_prompts(rows, self.generation.max_new_tokens, name)

    def _check_minibatches(self) -> None:
        """Refuse optimiser steps that no rollout could fill, on any rank."""
        rows, size = (getattr(self.trainer.datamodule, name, None) for name in ("train_rows", "batch_size"))  # type: ignore[attr-defined]
        if rows is None or size is None:
            return
        prompts, responses = min(size, len(rows)), 2 if self.reward is None else self.algorithm.responses_per_prompt
        loss_groups = -(-prompts // self.trainer.world_size) * responses // self.algorithm.rows_per_loss_group
        if 0 < loss_groups < self.algorithm.minibatches:
            raise UserError(
                f"{type(self.algorithm).__name__}.minibatches is {self.algorithm.minibatches}, and a rollout of {prompts} rows "
                f"(data.batch_size {size}, processes {self.trainer.world_size}) can fill {loss_groups} optimiser steps; set it to "
                f"{loss_groups} or less, or raise data.batch_size"
            )

    def configure_model(self) -> None:
        """Load the policy and, where the algorithm needs values, the critic."""
        if self.policy is not None:
            return
        model = load_causal_lm(self.config)
        policy = Policy(model, self._critic(model), self.generation.temperature)
        if self._shares(model) and self._trainer is not None and not self.trainer.predicting:
            for reward in self.rewards.values():
                reward.share(SharedBase(model, self.config))
        self.policy = self.placed(policy)

    def _shares(self, model: nn.Module) -> bool:
        return self.share_base and is_adapted(model)

    def _critic(self, model: nn.Module) -> nn.Module | None:
        if not self.algorithm.needs_values:
            return None
        size = language_model(model).get_output_embeddings().weight.shape[-1]  # of small OPTs not the hidden size
        if self.critic_kind == "shared":
            return SharedCritic(size)
        if not self._shares(model):
            return SeparateCritic(load_causal_lm(self.config), size)
        add_critic_adapter(SharedBase(model, self.config))
        return AdapterCritic(model, size)

    @property
    def network(self) -> Policy:
        """The policy with its critic."""
        assert self.policy is not None
        return self.policy

    def on_fit_start(self) -> None:
        """Build what is frozen: reference and rewards."""
        self._prepare()

    on_validation_start = on_test_start = on_fit_start

    def on_predict_start(self) -> None:
        """Nothing is judged: neither a reference nor a reward is needed."""

    def _prepare(self) -> None:
        if self.collector is None:
            self.load_rewards(self.rewards)
            self.collector = Collector(
                self.response_generator, self.reward, self._reference(), self.generation.temperature, self.overlap
            )
        if not self.prepared and isinstance(self.collector.reference, ReferenceCache):
            self._fill(self.collector.reference)
        self.prepared = True

    @property
    def response_generator(self) -> ResponseGenerator:
        """Writes with the policy as it is now."""
        assert self.policy is not None
        return ResponseGenerator(self.policy, self.generation, self.encoder_of_run)

    def _reference(self) -> Any:
        streamed = getattr(self.trainer.datamodule, "streaming", False)  # type: ignore[attr-defined]
        if self.reward is not None or streamed:  # whose rows are not known before the first step
            return build_reference(self.reference_kind, self.config, self.policy.model, self.device)  # type: ignore[union-attr]
        path = Path(self.trainer.default_root_dir) / "reference_logprobs.safetensors"
        return ReferenceCache(path, bool(self.trainer.ckpt_path))

    def _fill(self, recorded: ReferenceCache) -> None:
        """What the policy says, or said before it learned anything, of all recorded pairs that this trainer has."""
        fresh = functools.cache(self._anew) if self.weights_changed or self.trainer.ckpt_path else lambda: self.network
        with self.evaluation_mode():
            encoded = (encode_pairs(self.encoder_of_run, rows, self.max_length) for rows in self.all_rows())
            recorded.fill(lambda rows: fresh()(rows).logprobs, (rows.to(self.device) for rows in encoded))

    def _anew(self) -> Policy:
        policy = Policy(load_causal_lm(self.config), temperature=self.generation.temperature)
        return self.trainer.precision_plugin.convert_module(policy).to(self.device).eval()  # type: ignore[return-value]

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollout_loader(self, prompts: Iterable[Any]) -> RolloutLoader:
        """Rollouts made from a loader of prompts or of preference pairs."""
        seed = int(torch.initial_seed() % 2**31)
        parts = self.algorithm.epochs * self.algorithm.minibatches * self.accumulate
        source = RowSource(prompts, seed)
        iterations = len(source) if self.iterations is None else self.iterations
        epoch = self.epoch_of(iterations * parts)
        if epoch["limit"] % self.accumulate:
            raise UserError(
                f"an epoch of {epoch['limit']} batches ends within an optimiser step of {self.accumulate}: set "
                "trainer.limit_train_batches to a multiple of trainer.accumulate_grad_batches"
            )
        return RolloutLoader(source, self.collect, self._buffer, parts, iterations, seed, self.device, **epoch)

    def collect(self, rows: RawRows, count: bool, generator: torch.Generator, seed: int) -> RolloutBuffer:
        """Rows → rollout → credit → a full buffer; rows that do not `count` keep this rank in step with the others."""
        assert self.collector is not None
        with self.evaluation_mode():
            if self.reward is None:
                rollout = self.collector.recorded(rows, self.max_length, self.device, count, not self.single_pass)
            else:
                responses, values = self.algorithm.responses_per_prompt, self.algorithm.needs_values
                rollout = self.collector.online(rows, responses, values, generator, count)
            batch = self.algorithm.prepare(rollout)
            if batch.values is not None and batch.returns is not None:
                explained = explained_variance(batch.values, batch.returns, batch.mask)
                self.collector.metrics["value/explained_variance"] = float(explained)
        empty = self.algorithm.minibatches - len(batch) // self.algorithm.rows_per_loss_group
        if empty > 0 and not self.reported_empty_steps:
            print_once(
                f"a rollout of {len(rows)} rows leaves {empty} of {self.algorithm.minibatches} minibatches empty"
            )
            self.reported_empty_steps = True
        self.skipping, self.started = False, time.perf_counter()
        return self._buffer(batch, seed)

    def _buffer(self, batch: Batch | None = None, seed: int = 0) -> RolloutBuffer:
        return RolloutBuffer(
            batch or batch_of({"tokens": torch.zeros(1, 1)}),
            self.algorithm.weight,
            rows_per_loss_group=self.algorithm.rows_per_loss_group,
            epochs=self.algorithm.epochs,
            minibatches=self.algorithm.minibatches,
            accumulate=self.accumulate,
            seed=seed,
        )

    # -- learning ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Run the policy, ask the algorithm, divide; nothing while the rest of a rollout is skipped."""
        return torch.zeros((), device=self.device) if self.skipping else self.backward_loss(batch, self._loss)

    def _loss(self, batch: Batch) -> LossOutput:
        output = self.policy(batch, self.algorithm.needs_entropy)  # type: ignore[misc]
        if not self.single_pass:
            return self.algorithm.loss(output, batch)
        before = replace(batch, logprobs=output.logprobs.detach())
        drift = masked_sum(kl_estimate(before.logprobs, batch.reference_logprobs), batch.mask)
        loss = self.algorithm.loss(output, before)
        return replace(loss, means={**loss.means, "kl/reference": (drift, batch.mask.sum())})

    def loss_groups(self, batch: Batch) -> Tensor:
        """Rows that the algorithm never separates."""
        return super().loss_groups(batch) // self.algorithm.rows_per_loss_group

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing while the rest of a rollout is skipped: on several processes Lightning wants a loss all the same."""
        if not self.skipping:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step, unless the rest of a rollout is skipped: ranks then have no gradients to wait for either."""
        if not self.skipping:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        strategy = self.trainer.strategy
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            optimizer_closure()

    @property
    def single_pass(self) -> bool:
        """The step that learns from recorded pairs is the only one that does: its own pass is the policy before it."""
        steps = self.algorithm.epochs * self.algorithm.minibatches
        return self.reward is None and steps == 1 and not self.algorithm.prepare_reads_logprobs

    def record_step(self, loss: LossOutput) -> None:
        """Also keeps what this optimiser step measured, for `Algorithm.stop`."""
        self.step_accumulator.add(loss)
        super().record_step(loss)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Ask the algorithm whether to stop; log when the rollout is used up."""
        values = self._end_step()
        self.report(values, shown=("reward/mean", "kl/reference", "preference/accuracy"))

    def _end_step(self) -> dict[str, float]:
        assert self.loader is not None
        assert self.loader.buffer is not None
        assert self.collector is not None
        if self.loader.buffer.cursor % self.accumulate == 0 and self.step_accumulator.sums:
            measured = self.step_accumulator.read()
            self.skipping = self.algorithm.stop(measured)
            if self.loader.buffer.cursor == self.accumulate and "policy/ratio_max" in measured:
                # nothing has moved yet: what is not 1 is the gap between the numerics that write and those that train
                self.collector.metrics["policy/ratio_first"] = measured["policy/ratio_max"]
        return self.pending_metrics() if self.loader.at_last_micro_batch else {}

    def pending_metrics(self) -> dict[str, float]:
        """Also what was measured on the rollout when it was collected."""
        assert self.collector is not None
        values = {**self.collector.metrics, **self.algorithm.metrics(), **self.accumulator.read()}
        return values | {"time/update": time.perf_counter() - self.started, "memory/peak": peak_memory()}

    # -- held-out prompts --------------------------------------------------------------------------------------------

    def measure_rows(self, rows: RawRows) -> None:
        """Write one response to each held-out prompt and measure it; judge recorded pairs where there are any."""
        completions = self.response_generator.generate(rows, 1, self.sampler)
        self.held_out.add_completions(completions, self.rewards)
        if self.reward is not None:
            self._measure_kl(completions)
        elif "chosen" in rows[0]:
            self._measure_pairs(rows)

    def _measure_kl(self, completions: Completions) -> None:
        logprobs = self.policy(completions).logprobs  # type: ignore[misc]
        rows = (completions.tokens, completions.prompt_mask, completions.mask)
        reference = self.collector.reference.logprobs(*rows, self.generation.temperature)  # type: ignore[union-attr]
        self.held_out.add("kl/reference", kl_estimate(logprobs, reference)[completions.mask].tolist())
        if self.trainer.global_step == 0 and self.trainer.state.fn == "fit":
            gaps = kl_estimate(logprobs, reference, "k3")
            self.held_out.add("reference/gap", gaps[completions.mask].tolist())

    def on_validation_epoch_end(self) -> None:
        """Log; the gap between policy and reference is measured once, before the first step."""
        gaps = self.held_out.numbers.pop("reference/gap", [])
        super().on_validation_epoch_end()
        gap = float(mean_score(gaps, self.device))
        if self.reward is not None and self.trainer.global_step == 0 and self.trainer.state.fn == "fit":
            self._report_gap(gap)

    def _report_gap(self, gap: float) -> None:
        for logger in self.loggers:
            logger.log_metrics({"reference/gap": gap}, step=self.global_step)
        target = self.algorithm.kl_target
        if target is not None and gap > 0.1 * target:
            print_once(
                f"warning: the reference is {gap:.4f} nats per token away from the policy before the first step, more than a "
                f"tenth of the KL target {target}; use model.reference: int8 or full, or raise the target"
            )

    def _measure_pairs(self, rows: RawRows) -> None:
        pairs = self.collector.pairs(rows, self.max_length, self.device)  # type: ignore[union-attr]
        drift = ((pairs.logprobs - pairs.reference_logprobs) * pairs.mask).sum(-1)
        margin = drift[0::2] - drift[1::2]
        self.held_out.add("preference/margin", margin.tolist())
        self.held_out.add("preference/accuracy", preference_agreement(margin).tolist())

    def predict_rows(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """One completion a prompt, greedy by default, with the columns of its row."""
        generator = torch.Generator(self.device).manual_seed(index)
        generated = self.response_generator.generate(rows, 1, generator, self.predict_temperature)
        return [
            {**row, "prompt": p, "response": r}
            for row, p, r in zip(rows, generated.prompts, generated.responses, strict=True)
        ]

    # -- what stays --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The memory of the algorithm, and what the rollout at hand measured so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["algorithm"] = self.algorithm.state_dict()
        checkpoint["rollout_metrics"] = self.collector.metrics if self.collector else {}
        checkpoint["skipping"] = self.skipping

    def rank_state(self) -> dict[str, Any]:
        """Also the memories of the rewards, and what the step measured that has just been taken."""
        rewards = {name: reward.state_dict() for name, reward in self.rewards.items()}
        return {**super().rank_state(), "step_accumulator": self.step_accumulator.state_dict(), "rewards": rewards}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_rank_state(state)
        self.step_accumulator.load_state_dict(state["step_accumulator"], self.trainer.strategy.root_device)
        for name, reward in self.rewards.items():
            reward.load_state_dict(state["rewards"][name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.algorithm.load_state_dict(checkpoint["algorithm"])
        self.restored_metrics, self.skipping = checkpoint["rollout_metrics"], checkpoint["skipping"]

    def on_train_start(self) -> None:
        """Do what ends a step, if one was taken when the checkpoint was written and it came before that."""
        self._prepare()  # a tuner's trial comes before `on_fit_start`
        assert self.collector is not None
        if self.restored_metrics:  # not in `on_fit_start`: what is sharded reads its checkpoint after it
            self.collector.metrics, self.restored_metrics = self.restored_metrics, {}
        self.network.probe_capabilities()
        self.weights_changed = True
        self._restore_random_states()
        if self.step_accumulator.sums or (self.loader is not None and self.loader.at_last_micro_batch):
            self.tell_loggers(self._end_step())

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """The policy (or its adapter), tokenizer and generation config; the critic beside it."""
        assert self.policy is not None
        export_model(
            self.policy.model, self.tokenizer, folder, self.encoder_of_run.stop_tokens, sub_state(state, "model.")
        )
        if self.policy.critic is not None:
            save_critic(self.policy, state, folder / "critic.safetensors")
