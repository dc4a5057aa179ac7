"""The steps of the loop: the first one that is not done is started, until none is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.feedback.items import Content
from rlhf_lightning.feedback.questions import strategy_of
from rlhf_lightning.feedback.rank import head_scores
from rlhf_lightning.feedback.server import serving
from rlhf_lightning.feedback.settings import read_guidelines
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.loop import judging, simulated
from rlhf_lightning.loop.candidates import (
    Candidate,
    ask_file,
    generate_candidates,
    model_of,
    prompts_of_round,
    read_candidates,
)
from rlhf_lightning.loop.config import LoopConfig
from rlhf_lightning.loop.isolation import isolated
from rlhf_lightning.loop.judging import Scoring, frozen_labels, judge_round, wait_for_people
from rlhf_lightning.loop.measures import is_over, measure
from rlhf_lightning.loop.page import loop_page
from rlhf_lightning.loop.runs import changed_options, export_of, fit, policy_overlay, reward_overlay
from rlhf_lightning.loop.tree import Round, Stage, Tree, write_json, write_lines, write_text, write_yaml
from rlhf_lightning.models.config import ModelConfig


@dataclass(frozen=True)
class Stages:
    """What the loop knows of the stages' own configs.

    Attributes:
        reward: configs of the reward model.
        policy: configs of the policy.
        start: the model of the policy's config.
        generation: how the policy samples.
        prompts: that candidates answer.
        options: returns every option of a run with such configs.
    """

    reward: Sequence[str]
    policy: Sequence[str]
    start: ModelConfig
    generation: Generator
    prompts: Sequence[Content]
    options: Callable[[Sequence[str]], Mapping[str, Any]]


def save_page(tree: Tree) -> None:
    """Write the page about all rounds that are done."""
    write_text(tree.page, loop_page(f"Feedback loop {tree.folder}", tree.measured(), tree.next_step()))


@dataclass(frozen=True)
class Loop:
    """A loop in its folder."""

    tree: Tree
    config: LoopConfig
    stages: Stages

    def run(self) -> None:
        """Run the steps that are not done.

        Raises:
            UserError: a step cannot be done; the next call starts with it.
        """
        while (reason := is_over(measured := self.tree.measured(), self.config)) is None:
            save_page(self.tree)
            number = len(measured)
            self._round(self.tree.round(number), self.tree.round(number - 1) if number else None)
        save_page(self.tree)
        print(f"{self.tree.folder}: {reason}; {self.tree.page} shows all rounds", flush=True)

    def _round(self, round_: Round, before: Round | None) -> None:
        if not round_.ask.is_file():
            self._ask(round_, before)
        if not round_.labels.is_file():
            self._judge(round_, before)
        self._fit("reward", round_, before)
        self._fit("policy", round_, before)
        with Store(self.tree.store) as store:
            write_json(round_.measured, measure(store, self.config, round_))

    def _fit(self, stage: Stage, round_: Round, before: Round | None) -> None:
        configs: Sequence[str] = getattr(self.stages, stage)
        overlay = {"reward": reward_overlay, "policy": policy_overlay}[stage](self.config, round_, before)
        path, folder = round_.overlay(stage), round_.run(stage)
        write_yaml(path, overlay)
        if before is not None and not export_of(folder).is_dir():
            options = self.stages.options([*configs, str(path)])
            for key, earlier, now in changed_options(before.run(stage), options, overlay):
                line = f"round {round_.number}: {key} of {stage} is {now}; round {before.number} had {earlier}"
                print(line, flush=True)
        fit(configs, path, folder)

    def _ask(self, round_: Round, before: Round | None) -> None:
        config = self.config
        count = config.candidate_prompts
        prompts = prompts_of_round(self.stages.prompts, count, config.seed, round_.number)
        model = model_of(self.stages.start, None if before is None else export_of(before.policy))
        print(f"round {round_.number}: {model.name_or_path} answers {count} prompts", flush=True)
        counts = (config.responses, config.pairs_per_prompt)
        found = isolated(
            generate_candidates, self.tree.store, model, self.stages.generation, prompts, counts, config.seed
        )
        write_json(round_.ask, ask_file(round_.number, model, count, found))

    def _judge(self, round_: Round, before: Round | None) -> None:
        candidates = read_candidates(round_.ask)
        scores = self._scores(candidates, before)
        with Store(self.tree.store) as store:
            self._collect(store, candidates, round_.number, scores)
            labels, held_out = frozen_labels(store, self.config)
        if self.config.held_out:
            write_lines(round_.held_out, held_out)
        write_lines(round_.labels, labels)
        print(f"round {round_.number}: {len(labels)} labels to learn from, {len(held_out)} held out", flush=True)

    def _scores(self, candidates: Sequence[Candidate], before: Round | None) -> Scoring | None:
        strategy = strategy_of(self.config.strategy)
        if before is None or not strategy.heads:
            return None if strategy.heads else {}
        return isolated(head_scores, str(export_of(before.reward)), strategy, list(candidates))

    def _collect(self, store: Store, candidates: Sequence[Candidate], number: int, scores: Scoring | None) -> None:
        config = self.config
        by_people = config.annotators == "people"
        if not by_people:
            simulated.prepare(store, config.seed)
        if config.guidelines is not None:
            store.set_guidelines(read_guidelines(Path(config.guidelines)))
        host, port = (config.host, config.port) if by_people else ("127.0.0.1", 0)
        with serving(store, host=host, port=port) as address:
            if by_people:
                print(
                    f"round {number}: judge at {address}/ ; python -m rlhf_lightning feedback invite NAME --store "
                    f"{self.tree.store} --url {address} gives somebody a link",
                    flush=True,
                )

            def answered() -> None:
                if by_people:
                    wait_for_people(store, number)
                else:
                    simulated.answer(store, address, config.seed)

            judge_round(store, candidates, config, number, scores, answered)
            if by_people:
                judging.wait_for_last_page()
