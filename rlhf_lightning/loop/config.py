"""The options of the feedback loop, as `loop.yaml` has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlhf_lightning.errors import UserError, check_seed
from rlhf_lightning.feedback.questions import strategy_of
from rlhf_lightning.playground.task import ANNOTATORS

Start = Literal["last", "sft"]
CHANGEABLE = ("rounds", "monitor", "rounds_without_gain", "guidelines", "host", "port")
"""Options that may differ when the loop is continued; the others decide what its rounds hold."""


@dataclass(frozen=True)
class LoopConfig:
    """Options of `python -m rlhf_lightning loop`.

    Args:
        reward: config of the reward model, as `fit --config` takes it, or a list of configs, where later ones overlay
            earlier ones; its data must be PreferenceData. The loop sets `data.train`, `data.validation`, the model's start and
            the seed.
        policy: config of the policy, likewise; its reward must be a ModelReward, whose `name_or_path` the loop sets.
        rounds: of candidates, judgements, reward model and policy.
        labels: items of a round that are judged, whatever the number of judgements of each.
        judgements_per_item: of different annotators.
        prompts: file with a `prompt` in each row; by default the prompts that the policy trains on.
        prompts_per_round: prompts that get candidates in a round; by default twice `labels`.
        responses: candidates for each prompt.
        pairs_per_prompt: pairs of them among which the strategy chooses; one of them is asked before any second one.
        held_out: share of the prompts whose labels measure the reward model in every round and train it in none. Their pairs are
            chosen by chance, whatever the strategy. 0 leaves validation to the config of the reward model.
        strategy: chooses the pairs: random, margin, disagreement, thompson, or an import path. All but random read the reward
            model of the round before, and choose by chance in the first round.
        random_share: share of the questions that chance chooses beside the strategy.
        rank_every: items after which the rest is ranked again; by default once per round.
        annotators: `people`, on the page that the loop serves, or the playground's `simulated` annotators on the same page.
        reconcile: how several judgements of a pair become one probability: majority, dawid-skene or bradley-terry.
        reward_start: where a round's reward model starts: `last`, the one of the round before, or `sft`, the model of its config.
        policy_start: where policy and reference start: `sft`, the model of the policy's config, or `last`, the policy of the
            round before.
        monitor: held-out metric that must rise, such as policy/val/reward/true or reward/val/preference/accuracy; by default
            the loop ends after `rounds` alone.
        rounds_without_gain: rounds in which `monitor` has no new best value, after which the loop ends.
        guidelines: Markdown file that the page shows to people.
        host: address of the page.
        port: port of the page.
        seed: of everything that chance decides.
    """

    reward: str | list[str]
    policy: str | list[str]
    rounds: int = 3
    labels: int = 100
    judgements_per_item: int = 1
    prompts: str | None = None
    prompts_per_round: int | None = None
    responses: int = 4
    pairs_per_prompt: int = 1
    held_out: float = 0.2
    strategy: str = "random"
    random_share: float = 0.2
    rank_every: int | None = None
    annotators: Literal["people", "simulated"] = "people"
    reconcile: Literal["majority", "dawid-skene", "bradley-terry"] = "majority"
    reward_start: Start = "last"
    policy_start: Start = "sft"
    monitor: str | None = None
    rounds_without_gain: int = 2
    guidelines: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: naming the first option that is outside its range.
        """
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; set it to at least 1")
        if self.responses < 2:
            raise UserError(f"responses is {self.responses}; a pair needs two: set it to at least 2")
        if self.candidate_prompts < self.labels:
            raise UserError(
                f"prompts_per_round is {self.prompts_per_round} and labels is {self.labels}; a prompt gives one label before any "
                f"second one: set prompts_per_round to {self.labels} or more"
            )
        for name, below in (("held_out", True), ("random_share", False)):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (below and value == 1):
                raise UserError(f"{name} is {value}; set it to at least 0 and {'below' if below else 'at most'} 1")
        if not 0 <= self.port < 2**16:
            raise UserError(f"port is {self.port}; set it to a number from 0 to 65535")
        check_seed("seed", self.seed)
        strategy_of(self.strategy)
        if self.annotators == "simulated" and self.judgements_per_item > len(ANNOTATORS):
            raise UserError(
                f"judgements_per_item is {self.judgements_per_item}, and there are {len(ANNOTATORS)} simulated annotators; set "
                f"it to {len(ANNOTATORS)} or less"
            )
        if not self.reward or not self.policy:
            raise UserError(f"{'policy' if self.reward else 'reward'} names no config; set it to one, such as ppo.yaml")

    @property
    def candidate_prompts(self) -> int:
        """Prompts of a round that get candidates."""
        return 2 * self.labels if self.prompts_per_round is None else self.prompts_per_round

    def differences(self, earlier: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the options that must not change and do: (earlier, now)."""
        now = asdict(self)
        return {
            name: (earlier[name], value)
            for name, value in now.items()
            if name not in CHANGEABLE and name in earlier and earlier[name] != value
        }


COUNTS = (
    "rounds",
    "labels",
    "judgements_per_item",
    "prompts_per_round",
    "pairs_per_prompt",
    "rank_every",
    "rounds_without_gain",
)
