"""Run the evaluations of a trainer: user code on rank zero, requests on all ranks, the same outcome everywhere."""

from __future__ import annotations

import copy
import os
import shutil
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import (
    all_gather,
    broadcast,
    interleave_shards,
    of_all_ranks,
    rank,
    shard,
    shard_places,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.answers import answer, checked_request, chosen_rewards
from rlhf_lightning.evaluation.base import Evaluation, ExportRequest, Sample, SampleRequest, ValidationResults
from rlhf_lightning.evaluation.reports import Outcome, checked_report, failure_line
from rlhf_lightning.evaluation.tables import log_tables
from rlhf_lightning.models.export import add_model_card
from rlhf_lightning.models.sharding import full_state
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.collector import ReferenceLogprobs
from rlhf_lightning.rollouts.reference_cache import ReferenceCache
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import EVALUATION, Randomness


class EvaluatedStage(Protocol):
    """The interface of a stage that evaluations use."""

    trainer: Trainer

    @property
    def device(self) -> torch.device:
        """Device of this rank."""

    @property
    def response_generator(self) -> ResponseGenerator | None:
        """Generates responses with the present weights; None for a stage that generates no text."""

    @property
    def validation_rewards(self) -> Mapping[str, Reward]:
        """Rewards that validation measures, loaded; `mean` is the training reward."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context of eval mode with unsharded weights; every rank must enter it."""

    @property
    def network(self) -> Any:
        """All weights."""

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the model on rank 0; `state` holds full weights where they are sharded."""


def evaluations(trainer: Trainer) -> list[Evaluation]:
    """Return the evaluations among the callbacks of a trainer; the same on every rank."""
    return [each for each in trainer.callbacks if isinstance(each, Evaluation)]  # type: ignore[attr-defined]


def run_evaluations(stage: EvaluatedStage, results: ValidationResults | None) -> tuple[dict[str, float], list[str]]:
    """Run every evaluation of the stage's trainer; every rank must call it.

    Args:
        stage: answers requests.
        results: of this validation, on rank zero; not read on other ranks.

    Returns:
        The metrics of all evaluations by name, and the names of the classes of those that failed; the same on every rank.

    Raises:
        UserError: an evaluation that is `strict` failed.
    """
    metrics: dict[str, float] = {}
    failed = []
    for evaluation in evaluations(stage.trainer):
        if results is not None:
            results = replace(results, metrics={**results.metrics, **metrics})
        with isolate_rng():
            outcome = _lead(stage, evaluation, results) if rank() == 0 else _follow(stage, evaluation)
        metrics |= outcome.metrics
        if outcome.failure:
            failed.append(type(evaluation).__name__)
            if evaluation.strict:
                raise of_all_ranks(UserError(outcome.failure))
            print_once(outcome.failure)
        if outcome.export is not None:
            measured = None if results is None else {**results.metrics, **metrics}
            export_atomically(stage, Path(stage.trainer.default_root_dir) / outcome.export, measured)
        if outcome.stop is not None:
            stage.trainer.should_stop = True
            print_once(f"{type(evaluation).__name__} stops the run: {outcome.stop}")
    return metrics, failed


def _lead(stage: EvaluatedStage, evaluation: Evaluation, results: ValidationResults | None) -> Outcome:
    """Run the user's code on rank zero; whatever it raises becomes an outcome that all ranks get."""
    assert results is not None

    def ask(request: SampleRequest | ExportRequest) -> list[Sample]:
        if not isinstance(request, ExportRequest):
            request = checked_request(request)
        broadcast(request)
        return _answer(stage, evaluation, request)

    try:
        report = evaluation.evaluate(copy.deepcopy(results), ask)
        checked = checked_report(report, results.metrics)
        log_tables(stage.trainer, results.split, checked.tables)
        outcome = Outcome(dict(checked.metrics), stop=checked.stop, export=checked.export)
    except (Exception, SystemExit) as error:
        if os.environ.get("RLHF_LIGHTNING_DEBUG") == "1":
            traceback.print_exc()
        outcome = Outcome(failure=failure_line(evaluation, results.step, error))
    return _sent(outcome)


def _sent(outcome: Outcome) -> Outcome:
    broadcast(outcome)
    return outcome


def export_atomically(stage: EvaluatedStage, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
    """Export the model to a folder, which holds either its earlier files or all new ones; every rank must call it.

    A failure is printed, on no other rank than 0, and leaves the earlier files. The model card has `metrics`.
    """
    state = full_state(stage.network)
    if rank() != 0:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        stage.save_export(partial, state)
        add_model_card(stage.trainer, stage, partial, metrics)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:
        print_once(f"the export to {folder} failed: {type(error).__name__}: {error}")
        shutil.rmtree(partial, ignore_errors=True)


def _follow(stage: EvaluatedStage, evaluation: Evaluation) -> Outcome:
    """Answer the requests that rank zero sends, until it sends the outcome."""
    while True:
        message: SampleRequest | ExportRequest | Outcome = broadcast(None)
        if isinstance(message, Outcome):
            return message
        try:
            _answer(stage, evaluation, message)
        except UserError:  # of some rank; rank zero raises it too, in the user's code
            continue


def _answer(stage: EvaluatedStage, evaluation: Evaluation, request: SampleRequest | ExportRequest) -> list[Sample]:
    """Answer a request on all ranks.

    Raises:
        UserError: on every rank, where one of them failed.
    """
    if isinstance(request, ExportRequest):
        export_atomically(stage, Path(request.folder))
        return []
    with stage.evaluating():
        own: list[list[Sample]] | str
        try:
            own = _own_answer(stage, evaluation, request)
        except Exception as error:
            own = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    answers: list[Any] = all_gather(own)
    if failures := [each for each in answers if isinstance(each, str)]:
        raise UserError(failures[0])
    return [sample for samples in interleave_shards(answers) for sample in samples]


def _own_answer(stage: EvaluatedStage, evaluation: Evaluation, request: SampleRequest) -> list[list[Sample]]:
    responses, device = stage.response_generator, stage.device
    if responses is None:
        raise UserError(f"{type(stage).__name__} generates no responses; remove the request")
    rewards = chosen_rewards(request, stage.validation_rewards, evaluation.rewards, device)
    own = shard(list(request.rows))
    return answer(
        request, own, responses, rewards, Randomness(EVALUATION, 0, shard_places(len(own))), _reference(stage)
    )


def _reference(stage: EvaluatedStage) -> ReferenceLogprobs | None:
    """Return the stage's reference model; a cache for recorded pairs knows no other text."""
    collector = getattr(stage, "collector", None)
    reference = None if collector is None else collector.reference
    return None if isinstance(reference, ReferenceCache) else reference
