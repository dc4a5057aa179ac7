"""A reward server, called over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.endpoint import Endpoint
from rlhf_lightning.rewards.retry_and_timeout import RetryPolicy
from rlhf_lightning.types import Completions


class ServerReward(Reward):
    """Get the scores from an HTTP server, in any language and on any machine.

    The reward posts `{"prompts": [...], "responses": [...], "columns": {name: [...]}}` with all columns of the data set. Values
    that JSON lacks are sent as their text. The server answers `{"scores": [...]}`: a number for each response, or null for one
    that it cannot score. Each process of a run sends its own rows.

    A timeout, a failed connection and the HTTP statuses 408, 425, 429 and 5xx are retried. Any other status, a redirection
    included, stops the run.

    Args:
        url: an http or https URL.
        headers: headers of each request. `$NAME` in a value is read from the environment and is in no saved config, as in
            `Authorization: Bearer $REWARD_TOKEN`. `$$` is a dollar sign.
        batch_size: most responses per request; by default all.
        timeout: seconds for one request; null for no limit.
        retries: further attempts after the first.
        backoff: seconds before the first retry, doubled before each further one, up to a minute.
    """

    scores_while_generating = True

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        batch_size: int | None = None,
        timeout: float | None = 60.0,
        retries: int = 5,
        backoff: float = 2.0,
    ) -> None:
        self.url, self.headers, self.batch_size = url, headers or {}, batch_size
        policy = RetryPolicy(f"reward ServerReward {url}", timeout, retries, backoff)
        self.endpoint = Endpoint("ServerReward", url, self.headers, policy)

    def check(self) -> None:
        """Check the form of the URL and the headers. The server gets no request, as it may start later."""
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                f"ServerReward.batch_size is {self.batch_size}; set it to 1 or more, or to null for no limit"
            )
        self.endpoint.check()

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """Return the server's scores, in the order of the completions.

        Raises:
            UserError: all attempts failed, the server refused the request, or its answer has the wrong form.
        """
        scores: list[float | None] = []
        size = self.batch_size or len(completions) or 1
        for start in range(0, len(completions), size):
            rows = slice(start, start + size)
            request = {
                "prompts": completions.prompts[rows],
                "responses": completions.responses[rows],
                "columns": {name: values[rows] for name, values in completions.columns.items()},
            }
            scores += self._scores(request)
        return scores

    def _scores(self, request: dict[str, Any]) -> list[float | None]:
        count, name = len(request["responses"]), self.endpoint.retry_policy.name
        text = self.endpoint.post(request)
        try:
            answer = json.loads(text)
        except ValueError:
            raise UserError(f"{name} answered {self.endpoint.quoted(text)}, which is not JSON") from None
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            answered = f"{len(scores)} scores" if isinstance(scores, list) else self.endpoint.quoted(text)
            raise UserError(f'{name} answered {answered}; it must answer {{"scores": [{count} numbers or nulls]}}')
        return scores
