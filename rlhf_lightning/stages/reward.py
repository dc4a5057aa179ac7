"""Reward modelling: pairs, rankings and ratings; Bradley-Terry, or regression on ratings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy, binary_calibration_error

from rlhf_lightning.data.screening import Screening, screen
from rlhf_lightning.distributed import all_gather, share
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import masked_moments
from rlhf_lightning.functional.preference_losses import bradley_terry_loss
from rlhf_lightning.models.encoding import Encoded, recorded_rows
from rlhf_lightning.models.export import export_model, sub_state
from rlhf_lightning.models.loading import ModelConfig, load_reward_config, load_reward_model
from rlhf_lightning.models.reward_model import RewardModel, normalize_scores, set_normalization
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.rollouts.step_loader import StepLoader
from rlhf_lightning.stages.stage import OnNonFinite, Stage, check_minimum
from rlhf_lightning.training.optimizers import adamw
from rlhf_lightning.types import LossOutput, PreferenceBatch, RawRows

READ = ("prompt", "chosen", "rejected", "margin", "responses", "rated", "response", "rating", "label")
"""Columns that this stage reads."""


class RewardStage(Stage):
    """Teach a model with one output to score responses as people judged them.

    Args:
        model: a language model to put a head on, or a reward model to go on with.
        objective: `pairs` compares the responses of a prompt (Bradley-Terry; a ranking of K counts as its K(K-1)/2 pairs,
            each with weight 2/(K(K-1))); `regression` learns the ratings themselves by squared error.
        margin: take the margin that a row records off the difference of its scores.
        centering: λ of the term that keeps scores around 0; 0.01 is usual.
        calibrate: after training shift and scale scores so that those of the training data have mean 0 and variance 1.
        max_length: tokens of prompt and response together; longer rows lose the beginning of the prompt, then the end.
        optimizer: of the weights that train.
        lr_scheduler: steps with the optimizer.
        on_nonfinite: what a step with a NaN or an infinity does: stop the run, or be skipped and counted.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: Literal["pairs", "regression"] = "pairs",
        margin: bool = True,
        centering: float = 0.0,
        calibrate: bool = False,
        max_length: int | None = None,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(model, optimizer, lr_scheduler, on_nonfinite)
        check_minimum(2, max_length=max_length)  # a token of the prompt and one of the response
        self.objective, self.margin, self.centering = objective, margin, centering
        self.calibrate, self.max_length = calibrate, max_length
        self.scorer: RewardModel | None = None
        self.differences: list[Tensor] = []

    def setup(self, stage: str) -> None:
        """Tokenizer, checks, loaders."""
        self.check_rows(
            responses_of, "pairs, rankings or ratings, as PreferenceData, RankingData and RatingData give them"
        )
        self._check_comparisons()
        load_reward_config(self.config)
        self.encoder = self.load_encoder()
        self.screen_rows()
        self.wrap_loaders(self._train_loader)

    def screen_rows(self) -> dict[str, Screening]:
        """Encode every row once before weights are loaded; see `screen`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return screen(data, self.encoder_of_run, self.encoded, READ, predicting=self.trainer.predicting)

    def encoded(self, row: dict[str, Any]) -> list[Encoded]:
        """Encode the responses of a row, all behind one prompt, truncated to `max_length`."""
        texts = [text for text, _ in responses_of(row)]
        return self.encoder_of_run.together(row["prompt"], texts, self.max_length)[1]

    def _check_comparisons(self) -> None:
        rows = dict(self.rows_to_check()).get("train data", ())
        ratings = ({rating for _, rating in responses_of(row)} for row in rows)
        if self.objective == "pairs" and len(rows) and not any(len(found) > 1 for found in ratings):
            raise UserError(
                "RewardStage.objective pairs compares the responses to a prompt, and no row of the train data has two with "
                "different ratings; use objective: regression"
            )

    def configure_model(self) -> None:
        """Load the model and its head."""
        if self.scorer is None:
            self.scorer = self.placed(RewardModel(load_reward_model(self.config)))

    @property
    def model(self) -> nn.Module:
        """The sequence classifier; there from `configure_model` on."""
        assert self.scorer is not None
        return self.scorer.model

    @property
    def network(self) -> RewardModel:
        """The model with its head."""
        assert self.scorer is not None
        return self.scorer

    def _train_loader(self, loader: Iterable[Any]) -> StepLoader:
        source = RowSource(loader, int(torch.initial_seed() % 2**31))
        return StepLoader(source, self._compared, self._weight, self.accumulate, **self.epoch_of(len(source)))

    def _compared(self, rows: RawRows) -> PreferenceBatch:
        """`encode`, of rows that a data module did not show before weights were loaded.

        Raises:
            UserError: each holds one rated response, and responses are compared within a row.
        """
        if self.objective == "pairs" and all("rated" not in row and len(responses_of(row)) == 1 for row in rows):
            raise UserError(
                "RewardStage.objective pairs compares the responses of a row, and the rows have one each (columns "
                f"{', '.join(rows[0])}); give all responses to a prompt in one, as rated: [(response, rating), …], take "
                "RatingData, which does, or use objective: regression"
            )
        return self.encode(rows)

    def encode(self, rows: RawRows) -> PreferenceBatch:
        """Rows → token ids, ratings and margins; the responses of one row are compared."""
        prompts, responses, groups, ratings, margins = [], [], [], [], []
        for index, row in enumerate(rows):
            for response, (_, rating) in zip(self.encoded(row), responses_of(row), strict=True):
                prompts.append(response.prompt)
                responses.append(response.response)
                groups.append(index)
                ratings.append(rating)
                margins.append(float(row.get("margin") or 0.0) * self.margin)
        found = recorded_rows(prompts, responses, groups, self.encoder_of_run.stop_tokens, self.tokenizer.pad_token_id)
        return PreferenceBatch(**found.tensors(), ratings=torch.tensor(ratings), margins=torch.tensor(margins))

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """float32 [B]: the score of each response."""
        assert self.scorer is not None
        return self.scorer(batch)

    def training_step(self, batch: PreferenceBatch, index: int) -> Tensor:
        """Score every response once, compare, divide by the whole step."""
        return self.backward_loss(batch, lambda micro_batch: self.loss(self(micro_batch), micro_batch))

    def loss_groups(self, batch: PreferenceBatch) -> Tensor:
        """Responses that are compared; each for itself where none is."""
        return super().loss_groups(batch) if self.objective == "regression" else batch.groups

    def loss(self, scores: Tensor, batch: PreferenceBatch) -> LossOutput:
        """A sum over groups of the mean over their pairs, or over responses of the squared error."""
        loss = self.losses(scores, batch).double().sum() + 0 * scores.sum()
        means = {"loss/policy": (loss.detach(), self._weight(batch))}
        if self.objective == "pairs":
            better, worse, _ = comparisons(batch)
            difference = (scores[better] - scores[worse]).detach()
            count = torch.tensor(len(better), device=scores.device)
            means |= {
                "preference/accuracy": ((difference > 0).sum(), count),
                "preference/margin": (difference.sum(), count),
            }
        return LossOutput(loss, means)

    def losses(self, scores: Tensor, batch: PreferenceBatch) -> Tensor:
        """One loss a group that has something to compare; for a regression one a response."""
        if self.objective == "regression":
            return (scores - batch.ratings).square()[batch.mask.any(-1)]
        better, worse, portion = comparisons(batch)
        losses = bradley_terry_loss(scores[better], scores[worse], batch.margins[better], self.centering) * portion
        groups, place = torch.unique(batch.groups[better], return_inverse=True)
        return losses.new_zeros(len(groups)).index_add(0, place, losses)

    def _weight(self, batch: PreferenceBatch) -> Tensor:
        if self.objective == "regression":
            return batch.mask.any(-1).sum()
        return comparisons(batch)[2].sum()

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        """Log what the optimiser step measured, over all ranks."""
        self.report_step(shown=("loss/policy", "preference/accuracy"))

    def measure_rows(self, rows: RawRows) -> None:
        """Loss, and accuracy and calibration of the probability that the better response is better."""
        batch = self._compared(rows).to(self.device)
        scores = self(batch)
        self.held_out.add("loss/policy", self.losses(scores, batch).tolist())
        self.held_out.add("reward/mean", scores.tolist())
        better, worse, _ = comparisons(batch)
        if not len(better):
            return
        self.held_out.add("preference/margin", (scores[better] - scores[worse]).tolist())
        self.differences.append((scores[better] - scores[worse]).cpu())

    def held_out_metrics(self) -> dict[str, float]:
        """Accuracy and calibration of the comparisons of all ranks."""
        parts = [part for parts in all_gather(self.differences) for part in parts]
        self.differences = []
        if not parts:
            return {}
        # every comparison is asked both ways round, or the answer would always be yes and there no curve to calibrate
        difference = torch.cat(parts)
        probability = torch.sigmoid(torch.cat([difference, -difference]))
        yes = torch.cat([torch.ones_like(difference), torch.zeros_like(difference)]).long()
        return {
            "preference/accuracy": float(binary_accuracy(probability, yes)),
            "preference/calibration_error": float(binary_calibration_error(probability, yes, n_bins=10)),
        }

    def predict_rows(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """The rows with the score of each of their responses, normalised as the model says, as `ModelReward` gives it."""
        scores = iter(normalize_scores(self.model, self(self.encode(rows).to(self.device))).tolist())
        return [{**row, "scores": [next(scores) for _ in responses_of(row)]} for row in rows]

    def on_train_end(self) -> None:
        """Measure mean and deviation of the scores of the training data, if they are to be normalised."""
        super().on_train_end()
        if not self.calibrate:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = getattr(data, "train_rows", None)
        if rows is None:
            raise UserError(f"calibrate needs the training rows, and {type(data).__name__} has no attribute train_rows")
        with self.evaluation_mode():
            parts = [
                self(self.encode(own).to(self.device))
                for i in range(0, min(len(rows), 1024), 16)
                if (own := share([rows[j] for j in range(i, min(i + 16, len(rows), 1024))]))
            ]
        scores = torch.cat(parts) if parts else torch.empty(0, device=self.device)
        mean, variance = masked_moments(scores, torch.ones_like(scores, dtype=torch.bool))
        set_normalization(self.model, float(mean), float(variance.sqrt()))

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """The model with its head and score normalisation, and the tokenizer."""
        export_model(self.model, self.tokenizer, folder, self.encoder_of_run.stop_tokens, sub_state(state, "model."))


def responses_of(row: dict[str, Any]) -> list[tuple[Any, float]]:
    """(response, rating) of a pair, a ranking, or what was rated.

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
    """Rows better and worse of every pair with different ratings in a group, and each pair's share of its group's weight of 1."""
    real = batch.mask.any(-1)
    same = (batch.groups[:, None] == batch.groups[None]) & real[:, None] & real[None]
    better, worse = torch.nonzero(same & (batch.ratings[:, None] > batch.ratings[None]), as_tuple=True)
    counts = torch.bincount(batch.groups[better], minlength=int(batch.groups.max()) + 1)
    return better, worse, 1.0 / counts[batch.groups[better]].float()
