"""Reward modelling: pairs, rankings and ratings; Bradley-Terry, or regression on ratings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy, BinaryCalibrationError

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.losses import bradley_terry_loss
from rlhf_lightning.functional.masked import masked_moments
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import ModelConfig, load_reward_model
from rlhf_lightning.models.reward import normalized, score_sequences, set_normalization
from rlhf_lightning.rollouts.loader import RawRows, RowSource, StepLoader
from rlhf_lightning.stages.base import Stage, adamw
from rlhf_lightning.types import LossOutput, PreferenceBatch


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
    ) -> None:
        super().__init__(model, optimizer, lr_scheduler)
        self.objective, self.margin, self.centering = objective, margin, centering
        self.calibrate, self.max_length = calibrate, max_length
        self.model: nn.Module | None = None
        self.accuracy, self.calibration = BinaryAccuracy(), BinaryCalibrationError(n_bins=10)

    def setup(self, stage: str) -> None:
        """Tokenizer, checks, loaders."""
        self.encoder = self.load_encoder()
        self.wrap_loaders(self._train_loader)

    def configure_model(self) -> None:
        """Load the model and its head."""
        if self.model is None:
            self.model = load_reward_model(self.config)

    def _train_loader(self, loader: Iterable[Any]) -> StepLoader:
        source = RowSource(loader, int(torch.initial_seed() % 2**31))
        return StepLoader(source, self.encode, self._weight, self.accumulate)

    def encode(self, rows: RawRows) -> PreferenceBatch:
        """Rows → token ids, ratings and margins; responses of one row, or with the same prompt, are compared."""
        prompts, responses, names, ratings, margins = [], [], [], [], []
        for index, row in enumerate(rows):
            start = self.coder.prompt(row["prompt"])
            for text, rating in responses_of(row):
                prompt, response = self.coder.pair(start, self.coder.response(row["prompt"], text), self.max_length)
                prompts.append(prompt)
                responses.append(response)
                names.append(str(row["prompt"]) if "rating" in row else index)
                ratings.append(rating)
                margins.append(float(row.get("margin") or 0.0) * self.margin)
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        groups = [places[name] for name in names]
        found = recorded_rows(prompts, responses, groups, self.coder.stop_tokens, self.tokenizer.pad_token_id)
        return PreferenceBatch(**found.tensors(), ratings=torch.tensor(ratings), margins=torch.tensor(margins))

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """float32 [B]: the score of each response."""
        assert self.model is not None
        return score_sequences(self.model, batch.tokens, torch.cat([batch.prompt_mask, batch.mask], 1))

    def training_step(self, batch: PreferenceBatch, index: int) -> Tensor:
        """Score every response once, compare, divide by the whole step."""
        loss = self.loss(self(batch), batch)
        return self.divided(loss, batch.weight)

    def loss(self, scores: Tensor, batch: PreferenceBatch) -> LossOutput:
        """A sum over groups of the mean over their pairs, or over responses of the squared error."""
        if self.objective == "regression":
            error = (scores - batch.ratings).square().double().sum()
            return LossOutput(error, {"loss/policy": (error.detach(), self._weight(batch))})
        better, worse, share = comparisons(batch)
        losses = bradley_terry_loss(scores[better], scores[worse], batch.margins[better], self.centering) * share
        difference = (scores[better] - scores[worse]).detach()
        count = torch.tensor(len(better), device=scores.device)
        return LossOutput(
            losses.double().sum() + 0 * scores.sum(),
            {
                "loss/policy": (losses.detach().sum(), self._weight(batch)),
                "preference/accuracy": ((difference > 0).sum(), count),
                "preference/margin": (difference.sum(), count),
            },
        )

    def _weight(self, batch: PreferenceBatch) -> Tensor:
        if self.objective == "regression":
            return torch.tensor(len(batch), device=batch.tokens.device)
        return comparisons(batch)[2].sum()

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        """Log what the optimiser step measured, over all ranks."""
        if (batch_idx + 1) % self.accumulate == 0:
            self.report_step(shown=("loss/policy", "preference/accuracy"))

    def validation_step(self, rows: RawRows, index: int) -> None:
        """Loss, and accuracy and calibration of the probability that the better response is better."""
        batch = self.encode(rows).to(self.device)
        with self.measuring():
            scores = self(batch)
        loss = self.loss(scores, batch).means["loss/policy"]
        self.measure("loss/policy", [float(loss[0] / loss[1].clamp(min=1))])
        self.measure("reward/mean", scores.tolist())
        better, worse, _ = comparisons(batch)
        if not len(better):
            return
        self.measure("preference/margin", (scores[better] - scores[worse]).tolist())
        # every other comparison is asked the other way round, or the answer would always be yes and no curve to calibrate
        flip = torch.arange(len(better), device=scores.device) % 2 == 0
        difference = torch.where(flip, scores[worse] - scores[better], scores[better] - scores[worse])
        self.accuracy.update(torch.sigmoid(difference), (~flip).long())
        self.calibration.update(torch.sigmoid(difference), (~flip).long())

    test_step = validation_step

    def held_out_metrics(self) -> dict[str, float]:
        """Accuracy and calibration of the comparisons."""
        values = {}
        for name, metric in {"accuracy": self.accuracy, "calibration_error": self.calibration}.items():
            if metric.update_called:
                values[f"preference/{name}"] = float(metric.compute())
            metric.reset()
        return values

    def predict_step(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """The rows with the score of each of their responses, normalised as the model says, as `ModelReward` gives it."""
        assert self.model is not None
        batch = self.encode(rows).to(self.device)
        with self.measuring():
            scores = iter(normalized(self.model, self(batch)).tolist())
        return [{**row, "scores": [next(scores) for _ in responses_of(row)]} for row in rows]

    def on_train_end(self) -> None:
        """Measure mean and deviation of the scores of the training data, if they are to be normalised."""
        super().on_train_end()
        if not self.calibrate:
            return
        assert self.model is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = getattr(data, "train_rows", None)
        if rows is None:
            raise UserError(f"calibrate needs the training rows, and {type(data).__name__} has no attribute train_rows")
        with self.measuring():
            parts = [
                self(self.encode([rows[j] for j in range(i, min(i + 16, len(rows), 1024))]).to(self.device))
                for i in range(0, min(len(rows), 1024), 16)
            ]
        scores = torch.cat(parts)
        mean, variance = masked_moments(scores, torch.ones_like(scores, dtype=torch.bool))
        set_normalization(self.model, float(mean), float(variance.sqrt()))

    def export(self, folder: Path) -> None:
        """The model with its head and score normalisation, and the tokenizer."""
        assert self.model is not None
        export_model(self.model, self.tokenizer, folder, self.coder.stop_tokens)


def responses_of(row: dict[str, Any]) -> list[tuple[Any, float]]:
    """(response, rating) of a pair, a ranking or a rated response.

    >>> responses_of({"prompt": "p", "chosen": "a", "rejected": "b"})
    [('a', 1.0), ('b', 0.0)]
    """
    if "chosen" in row:
        return [(row["chosen"], 1.0), (row["rejected"], 0.0)]
    if "responses" in row:
        count = len(row["responses"])
        return [(response, float(count - 1 - place)) for place, response in enumerate(row["responses"])]
    return [(row["response"], float(row["rating"]))]


def comparisons(batch: PreferenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Rows better and worse of every pair with different ratings in a group, and each pair's share of its group's weight of 1."""
    same = batch.groups[:, None] == batch.groups[None]
    better, worse = torch.nonzero(same & (batch.ratings[:, None] > batch.ratings[None]), as_tuple=True)
    counts = torch.bincount(batch.groups[better], minlength=int(batch.groups.max()) + 1)
    return better, worse, 1.0 / counts[batch.groups[better]].float()
