"""An evaluation that requests greedy responses to the held-out prompts, and stops a run that they got much worse in."""

from statistics import mean

from rlhf_lightning import Evaluation, EvaluationReport, SampleRequest


class GreedyReward(Evaluation):
    def __init__(self, prompts: int = 64, floor: float = -10.0, strict: bool = False) -> None:
        super().__init__(strict)
        self.prompts, self.floor = prompts, floor

    def evaluate(self, results, ask):
        samples = ask(SampleRequest(results.rows[: self.prompts], temperature=0.0))
        reward = mean(sample["reward"] for sample in samples)
        return EvaluationReport(
            metrics={"reward/greedy": reward},
            tables={"greedy": samples},
            stop=f"reward/greedy is {reward:.2f}" if reward < self.floor else None,
        )
