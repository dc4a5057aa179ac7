"""The playground's annotators, who answer on the page that people would judge on."""

from __future__ import annotations

import html
import http.client
import json
import random
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.items import Content
from rlhf_lightning.feedback.people import INVITATION
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.playground.task import ANNOTATORS, Annotator, slots_of

LEASE_SECONDS = 1e9
"""A question that a simulated annotator has on the screen stays there, however long the loop is interrupted."""
BODY = re.compile(r'<div class="body" dir="auto">(.*?)</div>', re.DOTALL)
HIDDEN = re.compile(r'name="(token|lease|guidelines)" value="(\w+)"')


def check_prompts(prompts: list[Content]) -> None:
    """Refuse prompts that simulated annotators know no true reward of.

    Raises:
        UserError: naming the first of them.
    """
    for prompt in prompts:
        if not isinstance(prompt, str) or not slots_of(prompt):
            raise UserError(
                f"annotators is simulated, and the prompt {str(prompt)[:80]!r} is none of the playground's; set annotators "
                "to people"
            )


def answer(store: Store, address: str, seed: int) -> None:
    """Let simulated annotators judge every open item of the store, over HTTP.

    They take turns, and the number of judgements in the store says whose turn it is: an interrupted call and the next one
    together do what one call does. What somebody answers is a function of the seed, the annotator and the texts.

    Args:
        store: with the settings of `prepare`.
        address: of its page.
        seed: of the noise.
    """
    invitations = [store.invite(person.name, pseudonym=f"simulated-{person.name}") for person in ANNOTATORS]
    pages = [
        Page(address, invitation, person, seed) for invitation, person in zip(invitations, ANNOTATORS, strict=True)
    ]
    with store.database.read() as connection:
        turn = connection.execute("SELECT count(*) FROM judgements").fetchone()[0]
    while any(pages[(turn + offset) % len(pages)].judge() for offset in range(len(pages))):
        turn += 1


def prepare(store: Store, seed: int) -> None:
    """Make what chance decides for annotators a function of the seed."""
    store.update_settings(seed=seed, lease_seconds=LEASE_SECONDS, minimum_seconds=0.0, gold_share=0.0)


@dataclass
class Page:
    """The page of one annotator."""

    address: str
    invitation: str
    annotator: Annotator
    seed: int
    cookie: str = field(default="", init=False)

    def judge(self) -> bool:
        """Answer one item; False where the page has none for this annotator."""
        if not self.cookie:
            headers, _ = self._request("POST", INVITATION + self.invitation)
            self.cookie = str(headers["set-cookie"]).split(";")[0]
        _, page = self._request("GET", "/")
        form = dict(HIDDEN.findall(page))
        if "lease" not in form:
            return False
        prompt, first, second = (html.unescape(re.sub("<[^>]*>", "", body)).strip() for body in BODY.findall(page))
        choice = "1" if self.prefers_first(prompt, first, second) else "2"
        self._request("POST", "/save", urlencode({**form, "choice": choice, "seconds": "0"}))
        return True

    def prefers_first(self, prompt: str, first: str, second: str) -> bool:
        """Return which of two replies the annotator prefers, whatever their order."""
        one, other = sorted((first, second))
        rng = random.Random(f"{self.seed} {self.annotator.name} {prompt}\n{one}\n{other}")
        return self.annotator.prefers_first(prompt, one, other, rng) == (one == first)

    def _request(self, method: str, path: str, body: str | None = None) -> tuple[http.client.HTTPMessage, str]:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if method == "POST":
            headers |= {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status >= 400:
            said = json.loads(text)["message"] if text.startswith("{") else text[:200]
            raise UserError(f"the page of {self.annotator.name} answered {reply.status}: {said}")
        return reply.headers, text
