"""Roles of policy optimisation: the policy and its critic, which train; reference and reward models, which are frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import nn

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.critics import AdapterCritic, SeparateCritic, SharedCritic
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import ReferenceKind, ReferenceModel, build_reference
from rlhf_lightning.models.shared_base import SharedBase, add_critic_adapter
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.collector import ReferenceLogprobs
from rlhf_lightning.rollouts.labels import encode_labels
from rlhf_lightning.rollouts.preferences import encode_pairs
from rlhf_lightning.rollouts.reference_cache import ReferenceCache
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.training.lightning_compat import has_trainer
from rlhf_lightning.training.network import evaluation
from rlhf_lightning.training.requirements import check_components, check_generation, check_reference, rollout_source
from rlhf_lightning.training.rows import all_rows
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.types import RawRows, Rows

CriticKind = Literal["shared", "separate"]


class Roles:
    """Builds the models of policy optimisation; see `PolicyStage` for the arguments."""

    def __init__(
        self,
        module: LightningModule,
        text: TextEncoding,
        algorithm: Algorithm,
        generation: Generator,
        *,
        reward: Reward | None,
        evaluation_rewards: dict[str, Reward],
        reference: ReferenceKind | ReferenceModel,
        critic: CriticKind,
        share_base: bool,
        overlap: int,
        max_length: int | None,
    ) -> None:
        if overlap < 1 or (overlap > 1 and not (reward and reward.scores_while_generating)):
            raise UserError(
                f"overlap is {overlap}: it must be at least 1; more than 1 needs a reward that can score while the policy "
                "generates (FunctionReward, ServerReward or a WeightedSum of them)"
            )
        self.module, self.text, self.algorithm, self.generation = module, text, algorithm, generation
        self.reward, self.evaluation_rewards, self.share_base = reward, evaluation_rewards, share_base
        self.reference_kind, self.critic_kind = reference, critic
        self.overlap, self.max_length = overlap, max_length
        self.source = rollout_source(algorithm, reward)
        """What rollouts are made of."""
        check_components(algorithm, reward)
        check_generation(generation)
        check_reference(algorithm, reference)
        self._policy: Policy | None = None
        self._reference_filled = False

    @property
    def measures_gap(self) -> bool:
        """Rollouts are compared with a copy of the policy, whose distance before the first step is that of its quantisation."""
        return not self.is_recorded and isinstance(self.reference_kind, str) and self.reference_kind != "none"

    @property
    def policy(self) -> Policy:
        """The policy with its critic; available from `configure_model` on."""
        assert self._policy is not None
        return self._policy

    @property
    def rewards(self) -> dict[str, Reward]:
        """The reward that trains, under the name `mean`, and the rewards that validation measures."""
        return {**({} if self.reward is None else {"mean": self.reward}), **self.evaluation_rewards}

    def build_policy(self) -> Policy:
        """Load the policy and, where the algorithm needs values, the critic; let reward models share its base."""
        model = load_causal_lm(self.text.config)
        self._policy = Policy(model, self.build_critic(model), self.generation.temperature)
        if self._shares(model) and has_trainer(self.module) and not self.module.trainer.predicting:
            for reward in self.rewards.values():
                reward.share(SharedBase(model, self.text.config))
        return self._policy

    def build_critic(self, model: nn.Module) -> nn.Module | None:
        """Build the critic of a policy on `model`; None where the algorithm needs no values."""
        if not self.algorithm.needs_values:
            return None
        size = language_model(model).get_output_embeddings().weight.shape[-1]  # small OPTs: not the hidden size
        if self.critic_kind == "shared":
            return SharedCritic(size)
        if not self._shares(model):
            return SeparateCritic(load_causal_lm(self.text.config), size)
        add_critic_adapter(SharedBase(model, self.text.config))
        return AdapterCritic(model, size)

    def _shares(self, model: nn.Module) -> bool:
        return self.share_base and is_adapted(model)

    @property
    def response_generator(self) -> ResponseGenerator:
        """Generates responses with the present weights of the policy."""
        return ResponseGenerator(self.policy, self.generation, self.text.encoder)

    @property
    def is_recorded(self) -> bool:
        """Rollouts are made of recorded responses, and nothing is generated."""
        return self.source in ("pairs", "labels")

    def encode_recorded(self, rows: RawRows) -> Rows:
        """Encode recorded pairs or labelled responses, as rollouts hold them."""
        encoder, length = self.text.encoder, self.max_length
        return (
            encode_pairs(encoder, rows, length) if self.source == "pairs" else encode_labels(encoder, rows, length)[0]
        )

    def reference(self) -> ReferenceLogprobs | None:
        """Build the reference model; for recorded rows a cache of what it says; for the kind `none` nothing."""
        if self.reference_kind == "none":
            return None
        if isinstance(self.reference_kind, ReferenceModel):
            return self.reference_kind.load(self.module.device)
        streamed = getattr(self.module.trainer.datamodule, "streaming", False)  # type: ignore[attr-defined]
        # which rows a stream holds, and which are mismatched, is not known before the first step
        if not self.is_recorded or streamed or self.algorithm.mismatched_rows:
            return build_reference(self.reference_kind, self.text.config, self.policy.model, self.module.device)
        trainer = self.module.trainer
        path = Path(trainer.default_root_dir) / "reference_logprobs.safetensors"
        return ReferenceCache(path, bool(trainer.ckpt_path))

    def start_setup(self) -> None:
        """Compute reference log-probabilities again where the rows of this `fit`, `validate` or `test` need it."""
        self._reference_filled = False

    def fill_reference(self, reference: ReferenceLogprobs | None, weights_changed: bool) -> None:
        """Compute the reference log-probabilities of all recorded rows of this trainer, once after `start_setup`.

        Args:
            reference: a cache gets those that it lacks; a model needs none.
            weights_changed: the policy has learned, so that a fresh copy of it must compute them.
        """
        filled, self._reference_filled = self._reference_filled, True
        if filled or not isinstance(reference, ReferenceCache):
            return
        policy: Callable[[], Policy] = lambda: self.policy  # noqa: E731
        if weights_changed or self.module.trainer.ckpt_path:
            policy = functools.cache(self._fresh_policy)
        device = self.module.device

        def logprobs(rows: Rows) -> Any:
            return policy()(rows).logprobs

        with evaluation(self.module, self.policy):
            batches = (self.encode_recorded(rows) for rows in all_rows(self.module.trainer))
            reference.fill(logprobs, (rows.to(device) for rows in batches))

    def _fresh_policy(self) -> Policy:
        """Load the policy once more, as it was before the first step."""
        policy = Policy(load_causal_lm(self.text.config), temperature=self.generation.temperature)
        converted = self.module.trainer.precision_plugin.convert_module(policy).to(self.module.device).eval()
        assert isinstance(converted, Policy)
        return converted
