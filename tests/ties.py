"""A reward whose responses to a prompt are often tied, so that dynamic sampling asks for further prompts."""

from __future__ import annotations


def letters(responses: list[str]) -> list[float]:
    """1 for a response with an even number of letters that are not spaces."""
    return [float(len(response.replace(" ", "")) % 2 == 0) for response in responses]


REFILLED = [
    *("--config", "ppo.yaml", "--model.algorithm", "DAPO", "--model.algorithm.responses_per_prompt", "2"),
    *("--model.algorithm.epochs", "2", "--model.algorithm.minibatches", "2", "--model.algorithm.max_refills", "3"),
    *("--model.reward", "FunctionReward", "--model.reward.function", "tests.ties.letters"),
]
"""Two of four responses decide at random whether a prompt is tied: about half of the prompts are replaced."""
