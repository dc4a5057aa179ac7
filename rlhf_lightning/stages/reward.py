"""Reward modelling on pairs, rankings and ratings: Bradley-Terry, or regression on ratings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_calibration_error

from rlhf_lightning.data.screening import Screening
from rlhf_lightning.distributed import all_gather, shard
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.ensembles import disagreement
from rlhf_lightning.functional.masked import masked_moments
from rlhf_lightning.functional.preference_losses import bradley_terry_loss
from rlhf_lightning.models.encoding import Encoded, recorded_rows
from rlhf_lightning.models.loading import ModelConfig, load_reward_config, load_reward_model
from rlhf_lightning.models.reward_heads import add_heads, averaged_heads, freeze_all_but_head, saved_heads
from rlhf_lightning.models.reward_model import RewardModel, normalize_scores, set_normalization
from rlhf_lightning.rollouts.preferences import pair_probability
from rlhf_lightning.rollouts.step_loader import StepLoader
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.training.bootstrap import mean_over_heads, row_weights
from rlhf_lightning.training.checks import check_minimum
from rlhf_lightning.training.network import sharded_by_strategy
from rlhf_lightning.training.nonfinite import OnNonFinite
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.training.rows import screen_visible, visible_rows
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.types import LossOutput, PreferenceBatch, RawRows

READ = ("prompt", "chosen", "rejected", "margin", "probability", "responses", "rated", "response", "rating", "label")
"""Columns that this stage reads."""


class RewardStage(Stage):
    """Teach a model with one output to score responses as people judged them.

    Override `encode`, `loss`, `measure`, `predict` and `export`; see `rlhf_lightning.stages`.

    Args:
        model: a language model, which gets a head, or a reward model to train further.
        objective: `pairs` compares the responses of a prompt (Bradley-Terry; a ranking of K counts as its K(K-1)/2 pairs,
            each with weight 2/(K(K-1))); `regression` learns the ratings themselves by squared error.
        margin: subtract the margin that a row records from the difference of its scores.
        centering: λ of the term that keeps scores around 0; 0.01 is usual.
        calibrate: after training shift and scale scores so that those of the training data have mean 0 and variance 1.
        heads: an ensemble of this many linear heads on one backbone; the score is their mean. Each learns from a bootstrap sample
            of the rows (`bootstrap_weights`): the loss is convex in a head, so heads that differ by their start alone would
            become the same one. `val/reward/disagreement` is how far they differ.
        freeze_backbone: train the heads alone.
        max_length: tokens of prompt and response together; longer rows lose the beginning of the prompt, then the end.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: stop the run at a step with a NaN or an infinity, or skip the step and count it.
    """

    shown_metrics = ("loss/policy", "preference/accuracy")
    text: TextEncoding

    def __init__(
        self,
        model: ModelConfig,
        objective: Literal["pairs", "regression"] = "pairs",
        margin: bool = True,
        centering: float = 0.0,
        calibrate: bool = False,
        heads: int = 1,
        freeze_backbone: bool = False,
        max_length: int | None = None,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, on_nonfinite, TextEncoding(model), model.max_tokens_per_batch)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        check_minimum(1, heads=heads)
        self.objective, self.margin, self.centering = objective, margin, centering
        self.calibrate, self.max_length = calibrate, max_length
        self.heads, self.freeze_backbone = heads, freeze_backbone
        self.scorer: RewardModel | None = None
        self.compared: list[Tensor] = []
        self.by_head: list[Tensor] = []

    def setup(self, stage: str) -> None:
        """Check rows, load the tokenizer, and bind the loaders, before any weight is loaded."""
        self.check_rows(
            responses_of, "pairs, rankings or ratings, as PreferenceData, RankingData and RatingData give them"
        )
        self._check_comparisons()
        load_reward_config(self.text.config)
        self.text.load()
        self.screen_rows()
        self.bind_loaders()

    def screen_rows(self) -> dict[str, Screening]:
        """Encode every row once before weights are loaded; see `screen`."""
        return screen_visible(self.trainer, self.text.encoder, self.encoded, READ)

    def encoded(self, row: dict[str, Any]) -> list[Encoded]:
        """Encode the responses of a row, all behind one prompt, truncated to `max_length`."""
        pair_probability(row)
        texts = [text for text, _ in responses_of(row)]
        return self.text.encoder.together(row["prompt"], texts, self.max_length)[1]

    def _check_comparisons(self) -> None:
        rows = dict(visible_rows(self.trainer)).get("train data", ())
        ratings = ({rating for _, rating in responses_of(row)} for row in rows)
        if self.objective == "pairs" and len(rows) and not any(len(distinct) > 1 for distinct in ratings):
            raise UserError(
                "RewardStage.objective is pairs, which compares the responses to a prompt, and no row of the train data has two "
                "with different ratings; set it to regression"
            )

    def configure_model(self) -> None:
        """Load the model and its head."""
        if self.scorer is None:
            model = load_reward_model(self.text.config)
            if self.heads > 1:
                add_heads(model, self.heads, self.text.config.seed, saved_heads(self.text.config))
            if self.freeze_backbone:
                freeze_all_but_head(model)
            self.scorer = sharded_by_strategy(self, RewardModel(model))

    @property
    def model(self) -> nn.Module:
        """The sequence classifier; available from `configure_model` on."""
        return self.network.model

    @property
    def network(self) -> RewardModel:
        """The model with its head."""
        assert self.scorer is not None
        return self.scorer

    # -- training ------------------------------------------------------------------------------------------------------

    def train_loader(self, loader: Iterable[Any]) -> StepLoader:
        """Make the train loader; see `Stage.train_loader`."""
        return self.loaders.step_loader(loader, self._encode_compared, self.weigh)

    def _encode_compared(self, rows: RawRows) -> PreferenceBatch:
        """Encode rows that the data module did not show before weights were loaded.

        Raises:
            UserError: each holds one rated response, and the objective compares responses within a row.
        """
        if self.objective == "pairs" and all("rated" not in row and len(responses_of(row)) == 1 for row in rows):
            raise UserError(
                "RewardStage.objective is pairs, which compares the responses of a row, and the rows have one each (columns "
                f"{', '.join(rows[0])}); give all responses to a prompt in one row, as rated: [(response, rating), …], use "
                "RatingData, which does, or set it to regression"
            )
        return self.encode(rows)

    def encode(self, rows: RawRows) -> PreferenceBatch:
        """Encode rows with their ratings, margins and probabilities; the responses of one row are compared.

        A regression learns the probability that a response of a pair is the better one as its rating.
        """
        prompts, responses, groups, ratings, margins, probabilities, bootstrap = [], [], [], [], [], [], []
        for index, row in enumerate(rows):
            p, encoded_row = pair_probability(row), self.encoded(row)
            bootstrap += [row_weights(encoded_row, self.text.config.seed, self.heads)] * len(encoded_row)
            for response, (_, rating) in zip(encoded_row, responses_of(row), strict=True):
                prompts.append(response.prompt)
                responses.append(response.response)
                groups.append(index)
                soft_pair = self.objective == "regression" and "chosen" in row
                ratings.append((p if rating else 1 - p) if soft_pair else rating)
                probabilities.append(p)
                margins.append(float(row.get("margin") or 0.0) * self.margin)
        stops, pad = self.text.encoder.stop_tokens, self.text.tokenizer.pad_token_id
        encoded = recorded_rows(prompts, responses, groups, stops, pad)
        return PreferenceBatch(
            **encoded.tensors(),
            ratings=torch.tensor(ratings),
            margins=torch.tensor(margins),
            probabilities=torch.tensor(probabilities),
            bootstrap=torch.stack(bootstrap) if self.heads > 1 else None,
        )

    def weigh(self, batch: PreferenceBatch) -> Tensor:
        """Return the number of groups with a comparison; for a regression that of responses."""
        if self.objective == "regression":
            return batch.mask.any(-1).sum()
        return comparisons(batch)[2].sum()

    def loss_groups(self, batch: PreferenceBatch) -> Tensor:
        """Return int64 [B]: responses with the same number are compared."""
        return super().loss_groups(batch) if self.objective == "regression" else batch.groups

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """Return float32 [B]: the score of each response."""
        scores: Tensor = self.network(batch)
        return scores

    def loss(self, batch: PreferenceBatch) -> LossOutput:
        """Score every response once and compare."""
        return self.loss_of_scores(self.scores_to_learn(batch), batch)

    def scores_to_learn(self, batch: PreferenceBatch) -> Tensor:
        """Return float32 [B], the score of each response; of K > 1 heads float32 [B, K], each head's."""
        scores: Tensor = self(batch) if self.heads == 1 else self.network(batch, each_head=True)
        return scores

    def loss_of_scores(self, scores: Tensor, batch: PreferenceBatch) -> LossOutput:
        """Return the sum over groups of the mean over their pairs; for a regression the sum of squared errors.

        Args:
            scores: float32 [B], or [B, K] of K heads: the loss is then the mean over heads, each on its bootstrap sample.
            batch: of B responses.
        """
        losses = mean_over_heads(lambda head, rows: self.losses(head, batch, rows), scores, batch.bootstrap)
        loss = losses.double().sum() + 0 * scores.sum()
        scores = scores if scores.dim() == 1 else scores.mean(-1)
        means = {"loss/policy": (loss.detach(), self.weigh(batch))}
        if self.objective == "pairs":
            better, worse, _ = comparisons(batch)
            difference = (scores[better] - scores[worse]).detach()
            count, decided = torch.tensor(len(better), device=scores.device), probabilities(batch, better) != 0.5
            means |= {
                "preference/accuracy": ((decided & (difference > 0)).sum(), decided.sum()),
                "preference/margin": (difference.sum(), count),
            }
        return LossOutput(loss, means)

    def losses(self, scores: Tensor, batch: PreferenceBatch, row_weights: Tensor | None = None) -> Tensor:
        """Return one loss per group with a comparison, for a regression one per response; times `row_weights`, float [B]."""
        if self.objective == "regression":
            errors = (scores - batch.ratings).square()
            return (errors if row_weights is None else errors * row_weights)[batch.mask.any(-1)]
        better, worse, weights = comparisons(batch)
        if row_weights is not None:
            weights = weights * row_weights[better]
        margins, p = batch.margins[better], probabilities(batch, better)
        losses = bradley_terry_loss(scores[better], scores[worse], margins, self.centering, p) * weights
        groups, place = torch.unique(batch.groups[better], return_inverse=True)
        return losses.new_zeros(len(groups)).index_add(0, place, losses)

    # -- held-out rows -------------------------------------------------------------------------------------------------

    def measure(self, rows: RawRows) -> None:
        """Measure the loss, and the comparisons for accuracy and calibration."""
        batch, held_out = self._encode_compared(rows).to(self.device), self.validation.held_out
        scores = self.scores_to_learn(batch)
        if self.heads > 1:
            self.by_head.append(scores.T.cpu())
            scores = scores.mean(-1)
        held_out.add("loss/policy", self.losses(scores, batch).tolist())
        held_out.add("reward/mean", scores.tolist())
        better, worse, _ = comparisons(batch)
        if not len(better):
            return
        held_out.add("preference/margin", (scores[better] - scores[worse]).tolist())
        self.compared.append(torch.stack([scores[better] - scores[worse], probabilities(batch, better)]).cpu())

    def further_metrics(self) -> dict[str, float]:
        """Return accuracy and calibration error of the comparisons of all ranks, and how far heads disagree."""
        by_head = [each for of_rank in all_gather(self.by_head) for each in of_rank]
        self.by_head = []
        heads = {"reward/disagreement": disagreement(torch.cat(by_head, 1).tolist())} if by_head else {}
        found = [each for of_rank in all_gather(self.compared) for each in of_rank]
        self.compared = []
        if not found:
            return heads
        # every comparison enters in both orders: else the label would always be 1, which no calibration error can use
        difference, p = torch.cat(found, dim=1)
        scored, judged = torch.sigmoid(torch.cat([difference, -difference])), torch.cat([p, 1 - p])
        # its validation alone refuses labels between 0 and 1; it compares the means of both in each bin
        error, decided = binary_calibration_error(scored, judged, n_bins=10, validate_args=False), judged != 0.5
        metrics = heads | {"preference/calibration_error": float(error)}
        if decided.any():
            accuracy = binary_accuracy(scored[decided], (judged[decided] > 0.5).long())
            metrics["preference/accuracy"] = float(accuracy)
        return metrics

    def predict(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """Return the rows with the score of each of their responses, normalised as by `ModelReward`."""
        scores = iter(normalize_scores(self.model, self(self.encode(rows).to(self.device))).tolist())
        return [{**row, "scores": [next(scores) for _ in responses_of(row)]} for row in rows]

    def on_train_end(self) -> None:
        """Log the last metrics, and calibrate the scores if the run wants that."""
        super().on_train_end()
        if self.calibrate:
            self._calibrate()

    def _calibrate(self) -> None:
        """Measure mean and deviation of the scores of the first 1,024 training rows, and store them with the model."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = getattr(data, "train_rows", None)
        if rows is None:
            raise UserError(f"calibrate needs the training rows, and {type(data).__name__} has no attribute train_rows")
        with self.evaluating():
            scored = [
                self(self.encode(own).to(self.device))
                for i in range(0, min(len(rows), 1024), 16)
                if (own := shard([rows[j] for j in range(i, min(i + 16, len(rows), 1024))]))
            ]
        scores = torch.cat(scored) if scored else torch.empty(0, device=self.device)
        mean, variance = masked_moments(scores, torch.ones_like(scores, dtype=torch.bool))
        set_normalization(self.model, float(mean), float(variance.sqrt()))

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the model with the mean of its heads and its score normalisation, all heads beside it, and the tokenizer."""
        with averaged_heads(self.model, state) as (averaged, files):
            self.text.export(self.model, folder, averaged, files)


def responses_of(row: dict[str, Any]) -> list[tuple[Any, float]]:
    """Return (response, rating) of every response of a pair, a ranking or a rated row.

    >>> responses_of({"prompt": "p", "chosen": "a", "rejected": "b"})
    [('a', 1.0), ('b', 0.0)]
    >>> responses_of({"prompt": "p", "rated": [("a", 4), ("b", 2)]})
    [('a', 4.0), ('b', 2.0)]
    """
    if "chosen" in row:
        return [(row["chosen"], 1.0), (row["rejected"], 0.0)]
    if "responses" in row:
        count = len(row["responses"])
        return [(response, float(count - 1 - place)) for place, response in enumerate(row["responses"])]
    if "rated" in row:
        return [(response, float(rating)) for response, rating in row["rated"]]
    return [(row["response"], float(row["rating"]))]


def comparisons(batch: PreferenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Find all pairs with different ratings within a group.

    Returns:
        Indices of the better and of the worse rows, and the weight of each pair: those of a group add up to 1.
    """
    real = batch.mask.any(-1)
    same = (batch.groups[:, None] == batch.groups[None]) & real[:, None] & real[None]
    better, worse = torch.nonzero(same & (batch.ratings[:, None] > batch.ratings[None]), as_tuple=True)
    counts = torch.bincount(batch.groups[better], minlength=int(batch.groups.max()) + 1)
    return better, worse, 1.0 / counts[batch.groups[better]].float()


def probabilities(batch: PreferenceBatch, better: Tensor) -> Tensor:
    """Return float32: the probability that the better response of each comparison is better; 1 but for pairs that say so."""
    return torch.ones_like(batch.margins[better]) if batch.probabilities is None else batch.probabilities[better]
