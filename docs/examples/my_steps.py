"""A reward per step: each line of a response that is an equation."""


def equations(steps: list[list[str]]) -> list[list[float]]:
    return [[float("=" in step) for step in response] for response in steps]
