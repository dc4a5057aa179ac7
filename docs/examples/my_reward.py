"""A reward: one number a response, None for one that cannot be scored. It may ask for any column of the data by name."""


def short_and_polite(responses, prompts):
    return [("thank you" in response) - 0.02 * len(response.split()) for response in responses]
