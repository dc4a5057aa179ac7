"""Predictions of a stage that generates: responses to prompts, their scores, and preference pairs of the best and the worst."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from rlhf_lightning.console import print_once
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.conversation import as_rendered
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.training.checks import check_minimum, check_temperature
from rlhf_lightning.types import RawRows


class PreferencePairs:
    """Pair the best with the worst response to each prompt, as rows that `PreferenceData` reads."""

    def __init__(self) -> None:
        self.made = 0
        self.skipped: Counter[str] = Counter()
        """Prompts without a pair, by the reason."""
        self._rows: RawRows = []

    def add(self, encoder: Encoder, prompt: Any, responses: list[str], scores: list[float | None]) -> None:
        """Pair responses to one prompt; the first of equal scores counts.

        Args:
            encoder: of the policy.
            prompt: as the data set has it.
            responses: texts.
            scores: one for each response; None for one that could not be scored.
        """
        texts = [_as_recorded(encoder, prompt, response) for response in responses]
        scored = [(value, text) for value, text in zip(scores, texts, strict=True) if value is not None]
        if len(scored) < 2:
            self.skipped["unscored"] += 1
            return
        (best, chosen), (worst, rejected) = max(scored, key=_score_of), min(scored, key=_score_of)
        if chosen == rejected:  # as they also are where all scores are equal
            self.skipped["tied"] += 1
        elif not (chosen.strip() and rejected.strip()):
            self.skipped["empty"] += 1
        else:
            self.made += 1
            texts_and_scores = {"chosen": chosen, "rejected": rejected, "score_chosen": best, "score_rejected": worst}
            self._rows.append({**_prompt_columns(prompt), **texts_and_scores})

    def take(self) -> RawRows:
        """Return the rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


def _score_of(scored: tuple[float, str]) -> float:
    return scored[0]


def _as_recorded(encoder: Encoder, prompt: Any, text: str) -> str:
    """Return generated text as a data set records it: without surrounding space where its tokens are then the same."""
    bare = text.strip()
    return bare if encoder.generated(prompt, text) == encoder.response(prompt, bare) else text


def _prompt_columns(prompt: Any) -> dict[str, Any]:
    """Return the prompt with the tools and template arguments that a conversation carries, as columns of a data set."""
    prompt = as_rendered(prompt)
    named = {
        "tools": getattr(prompt, "tools", None),
        "chat_template_kwargs": getattr(prompt, "template_arguments", None),
    }
    return {"prompt": prompt, **{name: value for name, value in named.items() if value}}


class Predictor:
    """Generates the rows of `predict`.

    Args:
        temperature: sampling temperature; 0 is greedy.
        responses: responses to each prompt.
        reward: scores the responses, of which pairs are then made; None scores nothing.

    Raises:
        UserError: the arguments contradict each other.
    """

    def __init__(self, temperature: float, responses: int = 1, reward: Reward | None = None) -> None:
        check_temperature("predict_temperature", temperature)
        check_minimum(1, predict_responses=responses)
        if responses > 1 and temperature == 0:
            raise UserError(
                f"predict_responses is {responses} and predict_temperature is 0 (greedy), which generates {responses} times the "
                "same: set predict_temperature above 0, for example to 1.0"
            )
        self.temperature, self.responses, self.reward = temperature, responses, reward
        self.pairs = PreferencePairs() if reward is not None and responses > 1 else None

    def start(self, generation: Generator, device: torch.device) -> None:
        """Load the reward, and say which options of `generation` have no effect on greedy decoding."""
        if self.reward is not None:
            self.reward.load(device)
        if self.temperature == 0 and generation.truncated_by:
            print_once(f"predict_temperature is 0 (greedy), at which {generation.truncated_by} excludes nothing")

    def predict(self, responder: ResponseGenerator, rows: RawRows, randomness: Randomness) -> RawRows:
        """Return one row per response, with the columns of its prompt, and with its score where there is a reward.

        Args:
            responder: generates with the policy.
            rows: with a prompt.
            randomness: random numbers of the rows.
        """
        completions = responder.generate(rows, self.responses, randomness, self.temperature)
        texts = zip(completions.prompts, completions.responses, strict=True)
        repeated = [row for row in rows for _ in range(self.responses)]
        found = [{**row, "prompt": p, "response": r} for row, (p, r) in zip(repeated, texts, strict=True)]
        if self.reward is None:
            return found
        scores = [None if value != value else value for value in score(self.reward, completions).tolist()]
        if self.pairs is not None:
            for number, row in enumerate(rows):
                own = slice(number * self.responses, (number + 1) * self.responses)
                self.pairs.add(responder.encoder, row["prompt"], completions.responses[own], scores[own])
        return [{**row, "reward": value} for row, value in zip(found, scores, strict=True)]
