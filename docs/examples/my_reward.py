"""A reward function: a number for each response. Name a column of the data set as a parameter and it is passed too."""


def polite(responses: list[str]) -> list[float]:
    return [float("happy" in response) - 0.02 * len(response.split()) for response in responses]
