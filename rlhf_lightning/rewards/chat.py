"""An OpenAI-compatible chat endpoint: several requests at a time, answers kept by content, tokens and cost counted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_lightning.console import print_once
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.answer_cache import AnswerCache, content_key
from rlhf_lightning.rewards.endpoint import Endpoint, RefusedRequestError
from rlhf_lightning.rewards.retry_and_timeout import RetryPolicy

Messages = list[dict[str, str]]
ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
REFUSED_ROWS = ("context_length_exceeded", "content_filter", "content_policy_violation", "string_above_max_length")
"""Codes of an HTTP 400 or 413 that blame the text of one request; other requests may succeed."""
SECONDS_BETWEEN_REPORTS = 10.0
"""Between two lines about retries: many requests fail together."""


@dataclass
class Usage:
    """Count what was asked of an endpoint, by this process."""

    requests: int = 0
    """Requests that were sent and answered."""
    cached: int = 0
    """Answers that the cache had."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices."""

    def line(self) -> str:
        """Describe the counts for people."""
        tokens = f"{self.prompt_tokens} + {self.completion_tokens} tokens"
        cost = f", cost {self.cost:.4f}" if self.cost else ""
        return f"{self.requests} requests and {self.cached} answers of the cache, {tokens}{cost}"


@dataclass(frozen=True)
class Prices:
    """Hold the prices of a million tokens, and the cost at which to stop."""

    prompt: float = 0.0
    completion: float = 0.0
    limit: float | None = None


class Retries:
    """Print lines about retries, at most one per `SECONDS_BETWEEN_REPORTS`, with the number of those that are not shown."""

    def __init__(self) -> None:
        self.next, self.hidden = 0.0, 0

    def __call__(self, line: str) -> None:
        """Print a line, or count it."""
        if time.monotonic() < self.next:
            self.hidden += 1
            return
        more = f" ({self.hidden} more such lines)" if self.hidden else ""
        self.next, self.hidden = time.monotonic() + SECONDS_BETWEEN_REPORTS, 0
        print_once(line + more)


class ChatEndpoint:
    """Ask a chat endpoint.

    Args:
        owner: name of the class that asks, for messages about its arguments.
        url: of the API, such as `https://api.openai.com/v1`; `/chat/completions` is added where it is missing.
        model: name that the endpoint knows.
        options: further fields of each request, such as `temperature`.
        api_key: name of the environment variable with the key; None sends none.
        concurrency: requests at a time.
        cache: file of answers; None keeps them in memory.
        prices: of tokens.
        timeout: seconds for one request; None for no limit.
        retries: further attempts after the first.
        backoff: seconds before the first retry.
    """

    def __init__(
        self,
        owner: str,
        url: str,
        model: str,
        options: Mapping[str, Any],
        api_key: str | None,
        concurrency: int,
        cache: str | None,
        prices: Prices,
        timeout: float | None,
        retries: int,
        backoff: float,
    ) -> None:
        self.owner, self.model, self.options, self.api_key = owner, model, dict(options), api_key
        self.concurrency, self.prices, self.usage = concurrency, prices, Usage()
        self.next_report = 1
        """Requests at which the next line about the counts is due."""
        self.cache, self._lock = AnswerCache(cache), threading.Lock()
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        headers = {} if api_key is None else {"Authorization": f"Bearer ${{{api_key}}}"}
        policy = RetryPolicy(f"reward {owner} {url}", timeout, retries, backoff, Retries())
        self.endpoint = Endpoint(owner, self.url, headers, policy, "one chat completion")

    def check(self) -> None:
        """Check the key's variable, the numbers and the cache, without a request.

        Raises:
            UserError: one of them cannot be used.
        """
        if self.api_key is not None and not ENVIRONMENT_NAME.fullmatch(self.api_key):
            raise UserError(  # without the value, which may be a key
                f"{self.owner}.api_key is no name of an environment variable (capital letters, digits, underscores); set the "
                "variable to the key, and api_key to the variable's name, such as OPENAI_API_KEY"
            )
        if self.concurrency < 1:
            raise UserError(f"{self.owner}.concurrency is {self.concurrency}; set it to 1 or more")
        self.endpoint.check()
        self.cache.check()

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """Return the text of each answer, in order; equal conversations are asked once.

        Returns:
            None where the endpoint refused to answer one conversation.

        Raises:
            UserError: the endpoint is down, refuses every request, has no quota left, or answered something else than a chat
                completion; answers until then are in the cache.
        """
        requests = [{"model": self.model, "messages": messages, **self.options} for messages in conversations]
        keys = [content_key([self.url, request]) for request in requests]
        answers = self.cache.get(set(keys))
        self.usage.cached += sum(key in answers for key in keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        if missing:
            answers |= self._ask_all(missing)
            self._report()
        return [answers[key]["text"] for key in keys]

    def _ask_all(self, requests: Mapping[str, Any]) -> dict[str, Any]:
        """Ask in daemon threads: an error or an interruption ends the wait at once, and nothing further is asked."""
        futures: dict[str, Future[Any]] = {key: Future() for key in requests}
        waiting, stop = iter(list(requests.items())), threading.Event()

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    key, request = next(waiting, (None, None))
                if key is None:
                    return
                try:
                    futures[key].set_result(self._ask(key, request))
                except BaseException as error:  # the thread that waits raises it
                    stop.set()
                    futures[key].set_exception(error)

        for _ in range(min(self.concurrency, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            ended = wait(futures.values(), return_when=FIRST_EXCEPTION).done
        finally:
            stop.set()
        for future in ended:
            future.result()
        return {key: future.result() for key, future in futures.items()}

    def _ask(self, key: str, request: Any) -> dict[str, Any]:
        answer = self._answer(request)
        self.cache.keep(key, answer)
        with self._lock:
            self._count(answer)
        return answer

    def _report(self) -> None:
        """Print the counts whenever the requests have doubled."""
        if self.usage.requests >= self.next_report:
            self.next_report = 2 * self.usage.requests
            print_once(f"{self.owner} {self.model}: {self.usage.line()}")

    def _answer(self, request: Any) -> dict[str, Any]:
        """Send one request; `text` is None where the endpoint refuses to answer this conversation."""
        try:
            body = self.endpoint.post(request)
        except RefusedRequestError as refusal:
            if refusal.status in (400, 413) and any(code.encode() in refusal.body for code in REFUSED_ROWS):
                return {"text": None, "prompt_tokens": 0, "completion_tokens": 0}
            raise
        try:
            answer = json.loads(body)
            message = answer["choices"][0]["message"]
            usage = answer.get("usage") or {}
            text = None if message.get("refusal") else message.get("content")
            if not (text is None or isinstance(text, str)):
                raise TypeError
            counts = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{self.endpoint.retry_policy.name} answered {self.endpoint.quoted(body)}, which is no chat completion; set "
                "url to an OpenAI-compatible API"
            ) from None
        return {"text": text, **counts}

    def _count(self, answer: Mapping[str, Any]) -> None:
        usage, prices = self.usage, self.prices
        usage.requests += 1
        usage.prompt_tokens += answer["prompt_tokens"]
        usage.completion_tokens += answer["completion_tokens"]
        spent = answer["prompt_tokens"] * prices.prompt + answer["completion_tokens"] * prices.completion
        usage.cost += spent / 1e6
        if prices.limit is not None and usage.cost > prices.limit:
            raise UserError(
                f"{self.owner} has spent {usage.cost:.4f} of max_cost {prices.limit:g} ({usage.line()}); increase max_cost to "
                "continue"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return asdict(self.usage)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts."""
        self.usage = Usage(**state)
