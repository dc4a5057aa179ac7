"""Losses, credit and gradients against what TRL 1.16 computes on the same models and rows, to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import recipe
from parity.ours import PAD, STOP, logprobs_under, recorded, rollout_of, rows_of, same, same_gradient
from parity.recipe import PROMPTS, RESPONSES, language_model, scorer

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.cispo import CISPO
from rlhf_lightning.algorithms.dapo import DAPO
from rlhf_lightning.algorithms.distillation import Distillation
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.gdpo import GDPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.gspo import GSPO
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.kto import KTO
from rlhf_lightning.algorithms.orpo import ORPO
from rlhf_lightning.algorithms.pairwise import Pairwise
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.simpo import SimPO
from rlhf_lightning.functional.advantages import overlong_penalty
from rlhf_lightning.functional.masked import row_mean, row_sum
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reward_model import RewardModel
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.stages.supervised import SupervisedStage
from rlhf_lightning.types import Batch, InstructionBatch, LossOutput, PolicyOutput, PreferenceBatch, Rollout

FILE = recorded("1.16")
CASES: dict[str, dict[str, Any]] = FILE["cases"]
PAIRS = [responses[:2] for responses in RESPONSES]


def names(kind: str, *but: str) -> list[str]:
    found = [name for name in CASES if name.startswith(f"{kind}/") and name not in but]
    assert found, f"no numbers of {kind}"
    return found


def test_the_numbers_are_there_and_of_the_models_and_rows_that_the_tests_use() -> None:
    assert FILE["made_with"]["trl"] == "1.16.0"
    counts = {"dpo": 9, "reference_free": 2, "kto": 2, "reward": 3, "sft": 2, "grpo": 13, "rloo": 3}
    counts |= {"gspo": 2, "cispo": 2, "gdpo": 1, "dapo": 1, "distillation": 1}
    assert {kind: len(names(kind)) for kind in counts} == counts
    for name, value in FILE["recipe"].items():
        held = getattr(recipe, name)
        assert value == (list(held) if isinstance(held, tuple) else held), name


# -- pairs ------------------------------------------------------------------------------------------------------------


def pair_rollout(pairs: list[list[list[int]]] = PAIRS, prompts: list[list[int]] = PROMPTS) -> Rollout:
    return rollout_of(rows_of(prompts, pairs), "policy", [1.0, 0.0] * len(pairs))


class OddsRatio(ORPO):
    """The odds-ratio term alone: TRL's NLL is of the prompt too."""

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        found = super().loss(output, batch)
        return replace(found, loss=found.loss + row_mean(output.logprobs, batch.mask)[0::2].sum())


def dpo_loss(algorithm: Pairwise, rollout: Rollout, model: Any) -> torch.Tensor:
    batch = algorithm.prepare(rollout)
    return algorithm.loss(Policy(model)(batch), batch).loss / algorithm.weight(batch)


OURS: dict[str, dict[str, Any]] = {
    "dpo/ipo": {"loss_type": "ipo_length_normalized"},
    "dpo/robust": {"loss_type": "sigmoid", "robust": True, "label_smoothing": 0.2},
    "dpo/ld": {"ld_alpha": 0.3},
}
"""Options with another name than TRL's. Its `ipo` divides by the lengths of the responses."""


@pytest.mark.parametrize("name", names("dpo", "dpo/aot", "dpo/rpo"))
def test_dpo(name: str) -> None:
    case = CASES[name]
    (kind,) = case["options"]["loss_type"]
    same_on_pairs(DPO(**{"beta": case["options"]["beta"], "loss_type": kind, **OURS.get(name, {})}), case)


@pytest.mark.parametrize(
    ("name", "algorithm"), [("simpo", SimPO(beta=2.5, gamma=1.375)), ("orpo", OddsRatio(odds_ratio_coef=0.3))]
)
def test_without_a_reference(name: str, algorithm: Pairwise) -> None:
    same_on_pairs(algorithm, CASES[f"reference_free/{name}"])


def same_on_pairs(algorithm: Pairwise, case: dict[str, Any]) -> None:
    model = language_model("policy")
    loss = dpo_loss(algorithm, pair_rollout(), model)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])
    for i, wanted in enumerate(case["of_each_pair"]):
        same(dpo_loss(algorithm, pair_rollout(PAIRS[i : i + 1], PROMPTS[i : i + 1]), model), wanted)


@pytest.mark.parametrize("name", names("kto"))
def test_kto(name: str) -> None:
    """Four labelled responses, z from each prompt with the response to the next one; in one of the cases it is cut off at 0."""
    case = CASES[name]
    (policy, reference), algorithm = case["roles"], KTO(**case["options"])
    own = [(i, ids) for i, responses in enumerate(PAIRS) for ids in responses]
    each = [[ids, other] for (_, ids), (_, other) in zip(own, own[1:] + own[:1], strict=True)]
    rows = rows_of([PROMPTS[i] for i, _ in own], each)
    labels = torch.tensor(recipe.LABELS).repeat_interleave(2)
    rollout = replace(
        rollout_of(rows, policy, labels.float().tolist()),
        reference_logprobs=logprobs_under(reference, rows),
        mismatched=torch.tensor([False, True] * 4),
    )
    batch, model = algorithm.prepare(rollout), language_model(policy)
    loss = algorithm.loss(Policy(model)(batch), batch).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


def test_the_two_cases_of_kto_have_a_z_above_0_and_one_cut_off() -> None:
    drift = []
    for name in names("kto"):
        policy, reference = CASES[name]["roles"]
        rows = rows_of(PROMPTS, [[PAIRS[0][1]], [PAIRS[1][1]]])
        drift.append(float((logprobs_under(policy, rows) - logprobs_under(reference, rows))[rows.mask].sum()))
    assert sorted(x > 0 for x in drift) == [False, True]


def test_rpo_is_a_mean_over_tokens_of_each_chosen_response() -> None:
    """Pang et al., eq. 1; TRL's `sft` is a mean over the tokens of a batch, which is the same where the batch is one pair."""
    case = CASES["dpo/rpo"]
    algorithm = DPO(beta=case["options"]["beta"], nll_coef=case["options"]["loss_weights"][1])
    for i, wanted in enumerate(case["of_each_pair"]):
        same(dpo_loss(algorithm, pair_rollout(PAIRS[i : i + 1], PROMPTS[i : i + 1]), language_model("policy")), wanted)
    found = dpo_loss(algorithm, pair_rollout(), language_model("policy"))
    same(found, sum(case["of_each_pair"]) / 2)
    assert abs(found.item() - case["loss"]) > 1e-3


def test_conservative_dpo_is_aot_on_a_single_pair() -> None:
    """TRL 1.16 has no label smoothing in `sigmoid`; in its `aot`, whose sorting changes nothing where there is one pair."""
    case = CASES["dpo/aot"]
    algorithm = DPO(beta=case["options"]["beta"], label_smoothing=case["options"]["label_smoothing"])
    for i, wanted in enumerate(case["of_each_pair"]):
        same(dpo_loss(algorithm, pair_rollout(PAIRS[i : i + 1], PROMPTS[i : i + 1]), language_model("policy")), wanted)


def test_ipo_of_the_paper_is_not_divided_by_lengths() -> None:
    """Δ from TRL's own DPO losses, -log σ(βΔ) solved for Δ; then (Δ - 1/(2β))² of Azar et al., eq. 17, by hand."""
    case = CASES["dpo/sigmoid beta 0.5"]
    margins = -torch.expm1(torch.tensor(case["of_each_pair"], dtype=torch.float64)).log() / case["options"]["beta"]
    beta = CASES["dpo/ipo"]["options"]["beta"]
    found = dpo_loss(DPO(beta=beta, loss_type="ipo"), pair_rollout(), language_model("policy"))
    same(found, (margins - 1 / (2 * beta)).square().mean())
    assert abs(found.item() - CASES["dpo/ipo"]["loss"]) > 1


@pytest.mark.parametrize("name", names("reward"))
def test_reward_model(name: str) -> None:
    case = CASES[name]
    rows = rows_of(PROMPTS, PAIRS)
    margins = torch.tensor(case["margins"] or [0.0, 0.0]).repeat_interleave(2)
    batch = PreferenceBatch(**rows.tensors(), ratings=torch.tensor([1.0, 0.0] * 2), margins=margins)
    stage = RewardStage(ModelConfig("tiny"), centering=case["centering"] or 0.0)
    model = scorer("reward")
    stage.scorer = RewardModel(model)
    scores = stage(batch)
    same(scores, torch.tensor(case["scores"]).view(2, 2).T.flatten())  # TRL has all chosen before all rejected
    loss = stage.loss_of_scores(scores, batch).loss / stage.weigh(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


@pytest.mark.parametrize("name", names("sft"))
def test_supervised(name: str) -> None:
    """An optimiser step of two parts of unequal length, divided by the tokens of both."""
    case, model = CASES[name], language_model("policy")
    stage = SupervisedStage(ModelConfig("tiny"))
    stage.policy = Policy(model)
    total, weight = torch.zeros(()), 0
    for prompt, ids in zip(PROMPTS, case["tokens"], strict=True):
        start = len(prompt) if name == "sft/completion" else 1
        rows = recorded_rows([ids[:start]], [ids[start:]], [0], [STOP], PAD)
        total = total + stage.loss(InstructionBatch(**rows.tensors())).loss
        weight += int(rows.mask.sum())
    assert weight == case["counted"]
    same(total / weight, case["loss"])
    (total / weight).backward()
    same_gradient(model, case["gradient"])


# -- groups -----------------------------------------------------------------------------------------------------------


def online_rollout(case: dict[str, Any]) -> Rollout:
    """What the old policy wrote, scored as TRL's was."""
    rollout = rollout_of(rows_of(PROMPTS, RESPONSES), "old", case["scores"], case["options"]["temperature"])
    if "old_per_token_logps" in case:
        same(rollout.logprobs, case["old_per_token_logps"])
    return rollout


def credit(batch: Batch) -> torch.Tensor:
    """[B]: the advantage that all tokens of a response share."""
    assert batch.advantages is not None
    return batch.advantages[:, 0]


def grpo_of(options: dict[str, Any]) -> GRPO:
    aggregation = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "dr_grpo"}[options["loss_type"]]
    corrected = options.get("use_bias_correction_kl")  # TRL's default is true, and so is ours
    return GRPO(
        aggregation=aggregation,  # type: ignore[arg-type]
        clip_range=options.get("epsilon", 0.2),
        clip_range_high=options.get("epsilon_high"),
        max_response_length=options["max_completion_length"],
        kl=KLPenalty(coef=options["beta"], placement="loss", estimator="k3", ratio_weighted=corrected),
    )


@pytest.mark.parametrize("name", names("grpo", "grpo/delta", "grpo/unscored"))
def test_grpo(name: str) -> None:
    """A step in parts of three and three responses, of 13 and 11 tokens, is divided by what the whole of it weighs."""
    case, model = CASES[name], language_model("policy")
    algorithm = grpo_of(case["options"])
    batch = algorithm.prepare(online_rollout(case))
    same(credit(batch), case["advantages"])
    policy, loss = Policy(model, temperature=case["options"]["temperature"]), torch.zeros(())
    for rows in torch.arange(len(batch)).chunk(case["parts"]):
        part = batch.rows(rows)
        loss = loss + algorithm.loss(policy(part), part).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


def test_grpo_with_an_unscored_response() -> None:
    """The same advantages; TRL counts the response that has none in the mean over responses, 6 instead of 5."""
    case, model = CASES["grpo/unscored"], language_model("policy")
    algorithm = grpo_of(case["options"])
    batch = algorithm.prepare(online_rollout(case))
    same(credit(batch), case["advantages"])
    assert int(algorithm.weight(batch)) == 5
    loss = algorithm.loss(Policy(model, temperature=case["options"]["temperature"])(batch), batch).loss / 6
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


def test_the_dual_clip_is_trls_delta() -> None:
    """Its `bnpo` is the mean over all tokens where a step is not cut, which is PPO's policy loss."""
    case, model = CASES["grpo/delta"], language_model("policy")
    rollout = online_rollout(case)
    batch = GRPO().prepare(rollout)
    batch = replace(batch, values=torch.zeros_like(batch.logprobs), returns=torch.zeros_like(batch.logprobs))
    free = KLPenalty(coef=0.0)
    algorithm = PPO(dual_clip=case["options"]["delta"], clip_range=case["options"]["epsilon"], value_coef=0.0, kl=free)
    algorithm.rollouts = 1
    output = Policy(model, temperature=case["options"]["temperature"])(batch)
    loss = algorithm.loss(replace(output, values=batch.values), batch).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])
    algorithm.dual_clip = None
    without = algorithm.loss(replace(output, values=batch.values), batch).loss / algorithm.weight(batch)
    assert without.item() > case["loss"] + 1e-3


def rloo_of(case: dict[str, Any]) -> RLOO:
    return RLOO(kl=KLPenalty(coef=case["options"]["beta"]))


def test_the_loss_of_rloo_clips_one_response() -> None:
    """The fifth, where it has a score: its ratio is 1.64 and its advantage positive."""
    case = CASES["rloo/plain"]
    algorithm = rloo_of(case)
    batch = algorithm.prepare(online_rollout(case))
    output = Policy(language_model("policy"), temperature=case["options"]["temperature"])(batch)
    ratio = torch.exp(row_sum(output.logprobs - batch.logprobs, batch.mask)).tolist()
    held = [i for i, (r, a) in enumerate(zip(ratio, credit(batch).tolist(), strict=True)) if a > 1e-6 and r > 1.2]
    assert held == [4]


@pytest.mark.parametrize("name", names("rloo"))
@pytest.mark.parametrize("role", ["old", "policy"])
def test_rloo(name: str, role: str) -> None:
    """In the first step, where the ratio is 1, and later. TRL counts unscored responses in the mean."""
    case, model = CASES[name], language_model(role)
    algorithm = rloo_of(case)
    batch = algorithm.prepare(online_rollout(case))
    same(credit(batch), case["advantages"])
    assert int(algorithm.weight(batch)) == len([score for score in case["scores"] if score is not None])
    wanted = case["on_policy"] if role == "old" else case
    loss = algorithm.loss(Policy(model, temperature=case["options"]["temperature"])(batch), batch).loss / len(batch)
    same(loss, wanted["loss"])
    loss.backward()
    same_gradient(model, wanted["gradient"])


@pytest.mark.parametrize("name", names("rloo"))
def test_the_first_step_of_reinforce_leave_one_out_is_that_of_rloo(name: str) -> None:
    """The same gradient; without a ratio the loss is another number."""
    case, model = CASES[name], language_model("old")
    algorithm = REINFORCE(kl=KLPenalty(coef=case["options"]["beta"]))
    batch = algorithm.prepare(online_rollout(case))
    same(credit(batch), case["advantages"])
    output = Policy(model, temperature=case["options"]["temperature"])(batch)
    (algorithm.loss(output, batch).loss / len(batch)).backward()
    same_gradient(model, case["on_policy"]["gradient"])


def of_options(name: str) -> PolicyGradient:
    options, kind = CASES[name]["options"], name.split("/")[0]
    if kind == "gspo":
        return GSPO(clip_range=options["epsilon"], clip_range_high=options["epsilon_high"])
    if kind == "cispo":
        return CISPO(ratio_cap=options["epsilon_high"], scale="group")
    return GDPO(kl=KLPenalty(coef=0.0))


@pytest.mark.parametrize("name", [*names("gspo"), *names("cispo"), *names("gdpo")])
def test_corrections_of_grpo(name: str) -> None:
    case, model, algorithm = CASES[name], language_model("policy"), of_options(name)
    several = case["scores"] if isinstance(case["scores"][0], list) else [case["scores"]]
    rollout = online_rollout({**case, "scores": several[0]})
    if len(several) > 1:
        weights = torch.tensor(case["options"]["reward_weights"]).expand(len(rollout), -1)
        rollout = replace(rollout, components=torch.tensor(several).T, component_weights=weights)
    batch = algorithm.prepare(rollout)
    same(credit(batch), case["advantages"])
    policy, loss = Policy(model, temperature=case["options"]["temperature"]), torch.zeros(())
    for rows in torch.arange(len(batch)).chunk(case["parts"]):
        part = batch.rows(rows)
        loss = loss + algorithm.loss(policy(part), part).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


@pytest.mark.parametrize("name", ["gspo/plain", "cispo/plain"])
def test_some_ratio_is_clipped_in_the_cases_that_clip(name: str) -> None:
    case, algorithm = CASES[name], of_options(name)
    batch = algorithm.prepare(online_rollout(case))
    output = Policy(language_model("policy"), temperature=case["options"]["temperature"])(batch)
    clipped, tokens = algorithm.loss(output, batch).means["policy/clip_fraction"]
    assert 0 < float(clipped) < float(tokens)


def test_dapo_is_trls_of_that_name() -> None:
    case, model, algorithm = CASES["grpo/dapo"], language_model("policy"), DAPO()
    batch = algorithm.prepare(online_rollout(case))
    same(credit(batch), case["advantages"])
    output = Policy(model, temperature=case["options"]["temperature"])(batch)
    loss = algorithm.loss(output, batch).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


def test_distillation_in_the_first_step() -> None:
    case, model, algorithm = CASES["distillation/reverse"], language_model("old"), Distillation()
    rows = rows_of(PROMPTS, RESPONSES)
    batch = algorithm.prepare(rollout_of(rows, "old", [0.0] * len(rows), case["temperature"]))
    loss = algorithm.loss(Policy(model, temperature=case["temperature"])(batch), batch).loss / algorithm.weight(batch)
    same(loss, case["loss"])
    loss.backward()
    same_gradient(model, case["gradient"])


def test_the_overlong_penalty() -> None:
    case = CASES["dapo/overlong"]
    lengths = torch.tensor([len(response) for response in recipe.OVERLONG])
    same(-overlong_penalty(lengths, *case["options"]), case["penalty"])


def test_the_reference_is_trls_too() -> None:
    case = CASES["grpo/kl"]
    found = logprobs_under("reference", rows_of(PROMPTS, RESPONSES), case["options"]["temperature"])
    same(found, case["ref_per_token_logps"])
