"""The reward that both sides ask, where it is no model."""


def letter_reward(responses: list[str]) -> list[float]:
    """Which part of the letters is an e."""
    return [text.count("e") / max(1, len(text)) for text in responses]
