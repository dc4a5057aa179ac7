"""`chat MODEL [MODEL]`: talk to one model, or to two side by side without knowing which is which."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.rollouts.responses import ResponseGenerator

HELP = "talk to a model, or to two side by side and blind; /save keeps the better reply"
COMMANDS = """/save A     keep reply A as preferred to the other replies to this message, and continue with it
/again      another reply to the same message
/undo       take back the last message and its replies
/new        begin a new conversation
/who        say which model is which; from now on they keep their letters
/help       this list
/quit       end (also Ctrl-D)"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add models and sampling."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="an export, another folder or a hub name; one or two"
    )
    parser.add_argument(
        "--save", type=Path, default=Path("preferences.jsonl"), metavar="FILE", help="file of /save (%(default)s)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message; the model's chat template must have one")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the order of the models (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Talk until the user ends it.

    Raises:
        UserError: a model or an option cannot be used.
    """
    from rlhf_lightning.errors import check_seed

    check_seed("--seed", options.seed)
    if len(options.models) > 2:
        raise UserError(f"there are {len(options.models)} models; pass one or two")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {options.max_new_tokens}; set it to 1 or more")
    talk = Talk(options.models, [_load(name, options) for name in options.models], options)
    print(f"{len(options.models)} model{'s' * (len(options.models) > 1)}; /help lists the commands", flush=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line == "/quit":
            return 0
        try:
            talk.take(line)
        except UserError as error:
            print(error, flush=True)


def _load(name: str, options: argparse.Namespace) -> ResponseGenerator:
    import torch

    from rlhf_lightning.evaluation.responses import load_encoder
    from rlhf_lightning.generation.local import Sampler
    from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
    from rlhf_lightning.models.policy import Policy
    from rlhf_lightning.rollouts.responses import ResponseGenerator

    generation = Sampler(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    config = ModelConfig(name_or_path=name)
    encoder = load_encoder(config, generation)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ResponseGenerator(Policy(load_causal_lm(config)).to(device).eval(), generation, encoder)


@dataclass
class Talk:
    """A conversation with one or two models, and the replies to its last message."""

    names: Sequence[str]
    generators: Sequence[Any]
    """A `ResponseGenerator` per model."""
    options: argparse.Namespace
    history: list[dict[str, str]] = field(default_factory=list)
    """Messages until the last one of the user."""
    replies: list[str] = field(default_factory=list)
    """Replies to the last message by letter; with one model each `/again` adds one."""
    authors: list[str] = field(default_factory=list)
    """Names of the models of `replies`."""
    blind: bool = True
    turn: int = 0
    """Replies that were generated, for the random numbers."""

    def __post_init__(self) -> None:
        self.order = random.Random(self.options.seed)
        self._begin()

    def take(self, line: str) -> None:
        """Act on a line of the user: a command, or a message.

        Raises:
            UserError: there is no such command, or it cannot be done now.
        """
        word, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self._say(line)
        elif word == "/save":
            self._save(rest.strip().upper())
        elif word == "/again":
            self._require_replies()
            self._reply()
        elif word == "/undo":
            self._undo()
        elif word == "/new":
            self._begin()
            print("a new conversation")
        elif word == "/who":
            self._who()
        elif word == "/help":
            print(COMMANDS)
        else:
            raise UserError(f"there is no command {word}; /help lists the commands")

    def _begin(self) -> None:
        system = self.options.system
        self.history = [{"role": "system", "content": system}] if system else []
        self.replies, self.authors = [], []

    def _say(self, text: str) -> None:
        if self.replies:  # the conversation continues with the first reply, unless one was saved
            self.history.append({"role": "assistant", "content": self.replies[0]})
        self.replies, self.authors = [], []
        self.history.append({"role": "user", "content": text})
        try:
            self._reply()
        except UserError:
            self.history.pop()
            raise

    def _reply(self) -> None:
        """Have each model reply to the history, and show the replies by letter."""
        models = list(range(len(self.generators)))
        if len(models) > 1:
            self.replies, self.authors = [], []
            if self.blind:
                self.order.shuffle(models)
        for model in models:
            text = self._generate(model)
            self.replies.append(text)
            self.authors.append(self.names[model])
            name = "" if self.blind else f" ({self.names[model]})"
            letter = _letter(len(self.replies) - 1)
            label = f"[{letter}{name}] " if len(self.generators) > 1 or len(self.replies) > 1 else ""
            print(f"{label}{_printable(text)}", flush=True)

    def _generate(self, model: int) -> str:
        import torch

        from rlhf_lightning.seeding import Randomness

        self.turn += 1
        with torch.no_grad():
            randomness = Randomness(self.options.seed, self.turn, (0,))
            completions = self.generators[model].generate([{"prompt": self._prompt(model)}], 1, randomness)
        return str(completions.texts(skip_special_tokens=True, strip=True)[0])

    def _prompt(self, model: int) -> Any:
        """Return the messages; a model without a chat template reads the text of the last message alone."""
        template = getattr(self.generators[model].encoder.tokenizer, "chat_template", None)
        return list(self.history) if template else self.history[-1]["content"]

    def _save(self, letter: str) -> None:
        from rlhf_lightning.io import append_json_lines

        self._require_replies()
        letters = [_letter(place) for place in range(len(self.replies))]
        if letter not in letters:
            raise UserError(f"/save takes the letter of a reply: {', '.join(letters)}")
        place = letters.index(letter)
        chosen = self.replies[place]
        others = [k for k, text in enumerate(self.replies) if text != chosen]
        if not others:
            raise UserError("there is no other reply to prefer this one to; /again asks for one")
        prompt: Any = self.history[-1]["content"] if len(self.history) == 1 else list(self.history)
        rows = [
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": self.replies[k],
                "chosen_model": self.authors[place],
                "rejected_model": self.authors[k],
            }
            for k in others
        ]
        try:
            append_json_lines(self.options.save, rows)
        except OSError as error:
            raise UserError(f"{self.options.save} cannot be written: {error.strerror}") from error
        self.replies, self.authors = [chosen], [self.authors[place]]
        models = f" ({self.authors[0]} was better)" if len(self.generators) > 1 else ""
        print(f"saved to {self.options.save}{models}; the conversation continues with this reply")

    def _undo(self) -> None:
        if not self.history or self.history[-1]["role"] != "user":
            raise UserError("there is no message to take back")
        self.history.pop()
        if self.history and self.history[-1]["role"] == "assistant":
            self.replies = [self.history.pop()["content"]]
            self.authors = [""]
        else:
            self.replies, self.authors = [], []
        print("taken back")

    def _who(self) -> None:
        for place, author in enumerate(self.authors):
            print(f"{_letter(place)}: {author}")
        for name in self.names if not self.authors else ():
            print(name)
        self.blind = False

    def _require_replies(self) -> None:
        if not self.replies:
            raise UserError("there is no reply yet; type a message")


def _letter(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place % 26]


def _printable(text: str) -> str:
    """Show line breaks, and escape what a terminal would act on."""
    from rlhf_lightning.errors import printable

    return "\n".join(printable(line) for line in text.split("\n"))
