"""Which questions to ask: a reward model's accuracy on the true order of held-out pairs, by strategy of `feedback rank`.

usage: python benchmarks/questions.py [--features FOLDER] [--seeds 5] [--first-seed 5] [--budget 256] [--share 0.2]

400 prompts of the playground have three replies each, so three pairs. Simulated annotators answer the first 32 questions of the
ranked queue; then an ensemble of ten heads learns from all answers and ranks the queue again. A head is the maximum of the
Bradley-Terry likelihood of its bootstrap sample around a random prior. The backbone is frozen: the playground's supervised model,
or with `--features` the export of a reward model. What that one learned from, `labels.jsonl` beside the export, is asked nowhere.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lightning.feedback.questions import STRATEGIES, Pair, rank
from rlhf_lightning.functional.ensembles import bootstrap_weights
from rlhf_lightning.models.backbone import backbone_of
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.loading import ModelConfig, load_encoder, load_reward_model
from rlhf_lightning.models.packed_forward import final_hidden_states
from rlhf_lightning.playground import task
from rlhf_lightning.seeding import derive_seed

PROMPTS, REPLIES, HELD_OUT, HEADS, BATCH, PRIOR = 400, 3, 1000, 10, 32, 0.1
"""PRIOR: standard deviation of a head's weights before any answer."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 20: 2.093}
"""97.5 % quantiles of Student's t for so many seeds."""


def learned(features: str) -> set[tuple[str, str]]:
    """Return the (prompt, reply) that a model learned from."""
    path = Path(features).parent / "labels.jsonl"
    rows = map(json.loads, path.read_text().splitlines() if path.is_file() else ())
    return {(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")}


class Features:
    """Final hidden states of a model, standardised over the replies of the first call."""

    def __init__(self, name: str) -> None:
        config = ModelConfig(name)
        self.encoder, self.model = load_encoder(config), load_reward_model(config)
        self.moments: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, texts: list[tuple[str, str]]) -> Tensor:
        """Return float64 [N, H] of (prompt, reply)."""
        found = []
        for start in range(0, len(texts), 64):
            encoded = [
                self.encoder.together(prompt, [reply], None)[1][0] for prompt, reply in texts[start : start + 64]
            ]
            prompts, replies = [each.prompt for each in encoded], [each.response for each in encoded]
            pad = self.encoder.tokenizer.pad_token_id
            rows = recorded_rows(prompts, replies, list(range(len(encoded))), self.encoder.stop_tokens, pad)
            found.append(final_hidden_states(backbone_of(self.model), rows).double())
        features = torch.cat(found)
        if self.moments is None:
            self.moments = features.mean(0), features.std(0)
        return (features - self.moments[0]) / self.moments[1]


class Pool:
    """The pairs that may be asked, and held-out pairs with their true order."""

    def __init__(self, seed: int, features: Features, seen: set[tuple[str, str]]) -> None:
        rng = random.Random(seed)
        self.texts = [(p, task.make_reply(p, rng)) for p in task.prompts(PROMPTS, seed, False) for _ in range(REPLIES)]
        self.features = features(self.texts)
        self.pairs: dict[str, tuple[int, int]] = {}
        for prompt in range(PROMPTS):
            replies = range(prompt * REPLIES, (prompt + 1) * REPLIES)
            unseen = [reply for reply in replies if self.texts[reply] not in seen]
            different = [(a, b) for a in unseen for b in unseen if a < b and self.texts[a] != self.texts[b]]
            self.pairs |= {f"{a}-{b}": (a, b) for a, b in different}
        rng, held_out, prompts = random.Random(0), [], task.prompts(400, 0, True)
        while len(held_out) < HELD_OUT:
            prompt = rng.choice(prompts)
            first, second = task.make_reply(prompt, rng), task.make_reply(prompt, rng)
            difference = task.true_reward(prompt, first) - task.true_reward(prompt, second)
            if difference:
                held_out.append((prompt, first, second) if difference > 0 else (prompt, second, first))
        better, worse = ([(row[0], row[side]) for row in held_out] for side in (1, 2))
        self.held_out = features(better) - features(worse)

    def answer(self, key: str, seed: int) -> tuple[int, int]:
        """Return the better and the worse reply as one of the annotators says, the same one for every strategy."""
        (first, second), rng = self.pairs[key], random.Random(f"{seed} {key}")
        prompt, annotator = self.texts[first][0], rng.choice(task.ANNOTATORS)
        prefers = annotator.prefers_first(prompt, self.texts[first][1], self.texts[second][1], rng)
        return (first, second) if prefers else (second, first)


def fitted(differences: Tensor, weights: Tensor, priors: Tensor) -> Tensor:
    """Return [K, H]: the maximum of each head's likelihood and prior, by Newton steps that are halved until they improve it.

    Args:
        differences: [N, H], features of the better response minus the worse.
        weights: [N, K], how often a head's bootstrap sample has each answer.
        priors: [K, H], the centre of each head's prior.
    """
    precision = 1 / PRIOR**2
    eye = precision * torch.eye(priors.shape[1], dtype=priors.dtype)

    def objective(heads: Tensor) -> Tensor:
        likelihood = (weights * torch.nn.functional.logsigmoid(differences @ heads.T)).sum(0)
        return likelihood - precision / 2 * (heads - priors).square().sum(1)

    heads, now = priors, objective(priors)
    for _ in range(50):
        wrong = torch.sigmoid(-differences @ heads.T)
        gradient = (weights * wrong).T @ differences - precision * (heads - priors)
        if gradient.abs().max() < 1e-6 * len(differences):
            return heads
        scaled = (weights * wrong * (1 - wrong)).T[:, :, None] * differences  # [K, N, H]
        step = torch.linalg.solve(differences.T @ scaled + eye, gradient)
        for _ in range(40):
            if (better := (after := objective(heads + step)) >= now).all():
                break
            step = torch.where(better[:, None], step, step / 2)
        heads, now = heads + step, after
    raise RuntimeError("the heads have not converged")


def curve(strategy: str, pool: Pool, seed: int, budget: int, share: float) -> list[float]:
    """Return the accuracy on held-out pairs after every BATCH answers."""
    generator = torch.Generator().manual_seed(seed)
    priors = PRIOR * torch.randn(HEADS, pool.features.shape[1], generator=generator, dtype=torch.float64)
    heads, answers, asked, found = priors, dict[str, tuple[int, int]](), Counter[str](), []
    while len(answers) < budget:
        scores = [tuple(row) for row in (pool.features @ heads.T).tolist()]
        open_pairs = [
            Pair(key, prompt_of(a), (str(a), str(b)), (scores[a], scores[b]))
            for key, (a, b) in pool.pairs.items()
            if key not in answers
        ]
        # a prompt that was asked has had its question: the pool is larger than the budget
        fresh = [pair for pair in open_pairs if not asked[pair.prompt]]
        for question in rank(fresh, {}, STRATEGIES[strategy](), share, f"{seed} {len(answers)}")[:BATCH]:
            answers[question.key] = pool.answer(question.key, seed)
            asked[prompt_of(pool.pairs[question.key][0])] += 1
        better, worse = (torch.tensor([pair[side] for pair in answers.values()]) for side in (0, 1))
        sample = torch.stack([bootstrap_weights(derive_seed(seed, *pool.pairs[key]), HEADS) for key in answers])
        heads = fitted(pool.features[better] - pool.features[worse], sample.double(), priors)
        found.append(float((pool.held_out @ heads.mean(0) > 0).double().mean()))
    return found


def prompt_of(reply: int) -> str:
    """Return the prompt of a reply of the pool."""
    return str(reply // REPLIES)


def labels_needed(accuracies: list[float], target: float) -> float | None:
    """Return the labels at which a curve first reaches an accuracy, interpolated; None where it does not."""
    before = 0.5
    for place, accuracy in enumerate(accuracies):
        if accuracy >= target:
            return BATCH * (place + (target - before) / (accuracy - before))
        before = accuracy
    return None


def main() -> int:
    """Measure, and print a table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--first-seed", type=int, default=5, help="seeds 0 to 4 chose the default (%(default)s)")
    parser.add_argument("--budget", type=int, default=256, help="answers (%(default)s)")
    parser.add_argument("--share", type=float, default=0.2, help="random questions (%(default)s)")
    parser.add_argument("--features", default="playground/sft", metavar="FOLDER", help="of which model (%(default)s)")
    options = parser.parse_args()
    curves = {name: list[list[float]]() for name in STRATEGIES}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        pool = Pool(seed, Features(options.features), learned(options.features))
        for name in STRATEGIES:
            curves[name].append(curve(name, pool, seed, options.budget, options.share))
    budgets = range(BATCH, options.budget + 1, BATCH)
    print("| labels | " + " | ".join(map(str, budgets)) + " | labels for the last accuracy of random |")
    print("| --- " * (len(budgets) + 2) + "|")
    means = {name: [statistics.fmean(at) for at in zip(*of, strict=True)] for name, of in curves.items()}
    for name, of in curves.items():
        cells = [f"{mean:.3f}" for mean in means[name]]
        if name != "random":
            for place, at in enumerate(zip(*of, strict=True)):
                gains = [accuracy - base[place] for accuracy, base in zip(at, curves["random"], strict=True)]
                half = STUDENT[options.seeds] * statistics.stdev(gains) / options.seeds**0.5
                cells[place] += f" ({statistics.fmean(gains):+.3f} ± {half:.3f})"
        needed = labels_needed(means[name], means["random"][-1])
        print(f"| {name} | " + " | ".join(cells) + f" | {'more' if needed is None else f'{needed:.0f}'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
