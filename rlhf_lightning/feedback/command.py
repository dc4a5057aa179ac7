"""`python -m rlhf_lightning feedback …`: fill a store, serve the page, look at it, export it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import rank
from rlhf_lightning.feedback.answers import KINDS
from rlhf_lightning.feedback.argument_types import address, count, port
from rlhf_lightning.feedback.people import INVITATION, ROLES
from rlhf_lightning.feedback.settings import Settings, read_guidelines
from rlhf_lightning.feedback.status import status_lines
from rlhf_lightning.feedback.store import Store, removed_if_new

RECONCILE = ("majority", "dawid-skene", "bradley-terry")
"""Names of `annotators.METHODS`, which imports torch."""
HELP = "collect human judgements: ask, rank, serve, status, export, backup, invite, forget"
GENERATION = (
    "per_prompt",
    "responses",
    "max_new_tokens",
    "temperature",
    "batch_size",
    "seed",
    "dtype",
    "chat_template",
    "trust_remote_code",
)
"""Options of `ask` for responses that models generate."""


def run(options: argparse.Namespace) -> int:
    """Run one of the commands; all of them may be repeated, and beside a server."""
    command: Any = options.command
    command(options)
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _ask_arguments(
        _command(commands, "ask", ask, "add items to judge: generated responses, recorded pairs, known answers")
    )
    rank.add_arguments(_command(commands, "rank", rank.run, rank.HELP))
    _serve_arguments(_command(commands, "serve", serve, "serve the page that people judge on"))
    status_parser = _command(commands, "status", status, "print progress, agreement and annotators")
    status_parser.add_argument("--json", action="store_true", help="print one JSON object")
    status_parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, too")
    status_parser.add_argument(
        "--reconcile", choices=RECONCILE[1:], help="show how reliable each annotator is, by this"
    )
    _export_arguments(_command(commands, "export", export, "write judgements as rows to train on"))
    backup_parser = _command(commands, "backup", backup, "copy the store, also while it is served")
    backup_parser.add_argument("target", metavar="COPY", type=Path)
    invite_parser = _command(commands, "invite", invite, "print a link for somebody; an earlier link of the name ends")
    invite_parser.add_argument("name", metavar="NAME")
    invite_parser.add_argument(
        "--role",
        choices=ROLES,
        default="annotator",
        help="an adjudicator decides disputed items, an owner has the overview as well (%(default)s)",
    )
    invite_parser.add_argument(
        "--url",
        type=address,
        default="http://127.0.0.1:8080",
        help="address under which the page is reached (%(default)s)",
    )
    forget_parser = _command(commands, "forget", forget, "delete a name; the judgements stay under a pseudonym")
    forget_parser.add_argument("name", metavar="NAME")


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--store", type=Path, default=Path("feedback.db"), help="the store's file (%(default)s)")
    parser.set_defaults(command=function)
    return parser


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("where items come from (at least one)")
    source.add_argument("--prompts", metavar="FILE", help="prompts that each --model responds to")
    source.add_argument(
        "--pairs", metavar="FILE", help="recorded responses: chosen and rejected, or responses; for a second opinion"
    )
    source.add_argument("--gold", metavar="FILE", help="items with known answers, mixed in silently")
    source.add_argument("--training", metavar="FILE", help="items with known answers, asked first and explained")
    source.add_argument("--argilla", metavar="FILE", help="pairs of Argilla, with the judgements that they have")
    items = parser.add_argument_group("items")
    items.add_argument("--kind", choices=KINDS, default="pair", help="what is asked (%(default)s)")
    items.add_argument(
        "--judgements",
        type=count,
        metavar="K",
        help="judgements of different annotators for an item (1); kept in the store",
    )
    items.add_argument(
        "--criteria", nargs="+", metavar="NAME", help="of ratings (helpful harmless honest); kept in the store"
    )
    items.add_argument(
        "--per-prompt", type=count, metavar="N", help="generated items of a prompt (1; all for rating and edit)"
    )
    items.add_argument("--image-column", default="images", metavar="NAME", help="list of image files (%(default)s)")
    models = parser.add_argument_group("generation")
    models.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a folder or hub name; may be repeated"
    )
    models.add_argument(
        "--responses", type=count, default=2, metavar="N", help="responses of a model to a prompt (%(default)s)"
    )
    models.add_argument("--max-new-tokens", type=count, default=256, metavar="N", help="(%(default)s)")
    models.add_argument("--temperature", type=float, default=1.0, help="(%(default)s)")
    models.add_argument("--batch-size", type=count, default=32, metavar="N", help="prompts at a time (%(default)s)")
    models.add_argument("--seed", type=int, default=0, help="of sampling and of choosing pairs (%(default)s)")
    models.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "auto"), default="float32", help="(%(default)s)"
    )
    models.add_argument(
        "--chat-template", metavar="NAME", help="dialogue, chatml, a file or a template (the tokenizer's)"
    )
    models.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    parser.set_defaults(defaults=_defaults(parser, (*GENERATION, "image_column")))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port, default=8080, help="(%(default)s)")
    parser.add_argument("--root-path", default="", help="path under which a reverse proxy serves the page")
    parser.add_argument(
        "--guidelines", type=Path, metavar="FILE", help="Markdown for annotators; a new text is a new version"
    )
    settings = parser.add_argument_group("settings, kept in the store")
    settings.add_argument("--title", help="heading of the page")
    settings.add_argument("--minimum-seconds", type=float, help="refuse answers that come sooner (0)")
    settings.add_argument("--lease-seconds", type=float, help="how long an item is kept for an annotator (1800)")
    settings.add_argument("--gold-share", type=float, help="share of gold items (0.1)")
    settings.add_argument("--strength", action=argparse.BooleanOptionalAction, help="ask how much better a response is")
    settings.add_argument("--reasons", nargs="*", metavar="TEXT", help="reasons to choose from")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = ("pairs", "rankings", "ratings", "demonstrations")
    parser.add_argument("target", metavar="FILE", type=Path)
    parser.add_argument("--kind", choices=kinds, default="pairs", help="rows of which kind (%(default)s)")
    parser.add_argument(
        "--format", choices=("rows", "argilla"), default="rows", help="JSON lines, or Argilla's records"
    )
    parser.add_argument("--ties", action="store_true", help="write pairs of probability 0.5 too")
    parser.add_argument("--decided", action="store_true", help="only items that are settled or adjudicated")
    parser.add_argument("--criterion", metavar="NAME", help="of ratings (the mean of all)")
    parser.add_argument(
        "--reconcile",
        choices=RECONCILE,
        default="majority",
        help="annotators of a pair, to one probability (%(default)s)",
    )
    parser.set_defaults(defaults=_defaults(parser, ("ties", "decided", "criterion", "reconcile")))


def _defaults(parser: argparse.ArgumentParser, names: Iterable[str]) -> dict[str, Any]:
    return {name: parser.get_default(name) for name in names}


def ask(options: argparse.Namespace) -> None:
    """Add items; those in the store already stay, and take more judgements where more are asked."""
    _check_sources(options)
    from rlhf_lightning.feedback import ask as sources
    from rlhf_lightning.feedback.candidates import ItemTemplate

    with removed_if_new(options.store), Store(options.store, create=True) as store:
        settings = _updated(store, judgements_per_item=options.judgements, criteria=options.criteria)
        criteria = settings.criteria if options.kind == "rating" else ()
        template = ItemTemplate(options.kind, settings.judgements_per_item, criteria, options.image_column)
        files = {"training": options.training, "gold": options.gold, "item": options.pairs}
        for purpose, file in files.items():
            if file:
                print(sources.ask_file(store, file, template, purpose), flush=True)
        if options.argilla:
            print(sources.ask_argilla(store, options.argilla, template), flush=True)
        if options.prompts:
            print(sources.ask_models(store, options.prompts, *_generation(options, template)), flush=True)


def _check_sources(options: argparse.Namespace) -> None:
    """Refuse options that would do nothing.

    Raises:
        UserError: an option belongs to a source or a kind that was not asked for.
    """
    if options.model and not options.prompts:
        raise UserError("--model needs --prompts to respond to")
    if not (options.prompts or options.pairs or options.gold or options.training or options.argilla):
        raise UserError("nothing to ask; set --prompts, --pairs, --gold, --training or --argilla to a file")
    if options.prompts and not options.model:
        raise UserError("--prompts needs a --model that responds; set --pairs instead for responses that are recorded")
    if options.argilla and options.kind != "pair":
        raise UserError(f"Argilla's records are pairs and --kind is {options.kind}; remove --kind or --argilla")
    if options.criteria and options.kind != "rating":
        raise UserError(
            f"--criteria are of ratings and --kind is {options.kind}; set --kind rating or remove --criteria"
        )
    if not options.prompts:
        _refuse(options, GENERATION, "of generated responses; set --prompts and --model, or remove it")
    if not (options.pairs or options.gold or options.training):
        _refuse(options, ("image_column",), "of recorded responses; set --pairs, --gold or --training, or remove it")


def _refuse(options: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Refuse an option that was given and has no use here."""
    for name in names:
        if getattr(options, name) != options.defaults[name]:
            raise UserError(f"--{name.replace('_', '-')} is {reason}")


def _generation(options: argparse.Namespace, template: Any) -> tuple[Any, Any]:
    from rlhf_lightning.feedback.ask import Sampling
    from rlhf_lightning.feedback.candidates import ItemBuilder
    from rlhf_lightning.generation.local import Sampler
    from rlhf_lightning.models.loading import ModelConfig

    models = tuple(
        ModelConfig(
            name_or_path=name,
            dtype=options.dtype,
            chat_template=options.chat_template,
            trust_remote_code=options.trust_remote_code,
        )
        for name in dict.fromkeys(options.model)
    )
    sampler = Sampler(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    sampling = Sampling(models, options.responses, sampler, options.seed, options.batch_size)
    return sampling, ItemBuilder(template, options.per_prompt, options.seed)


def _updated(store: Store, **values: Any) -> Settings:
    """Change the settings that were given on the command line."""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
    return store.update_settings(**given) if given else store.settings


def serve(options: argparse.Namespace) -> None:
    """Serve the page until it is stopped."""
    try:
        from rlhf_lightning.feedback.server import serve as serve_store
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"the page needs {package}; pip install 'rlhf_lightning[feedback]'") from error
    with Store(options.store) as store:
        names = ("title", "minimum_seconds", "lease_seconds", "gold_share", "strength", "reasons")
        _updated(store, **{name: getattr(options, name) for name in names})
        if options.guidelines is not None:
            store.set_guidelines(read_guidelines(options.guidelines))
        if not any("owner" in person.roles for person in store.people()):
            print(
                f"nobody owns {options.store} yet: feedback invite NAME --role owner --store {options.store}",
                flush=True,
            )
        serve_store(store, host=options.host, port=options.port, root_path=options.root_path)


def status(options: argparse.Namespace) -> None:
    """Print progress, agreement and annotators."""
    from rlhf_lightning.feedback.agreement import overview

    with Store(options.store) as store:
        found = overview(store, options.reconcile)
    if options.html is not None:
        from rlhf_lightning.feedback.export import write_text
        from rlhf_lightning.feedback.pictures import store_page

        write_text(options.html, store_page(str(options.store), found))
    print(json.dumps(dataclasses.asdict(found)) if options.json else "\n".join(status_lines(found)))


def export(options: argparse.Namespace) -> None:
    """Write judgements as rows, whole or not at all."""
    from rlhf_lightning.feedback.argilla import argilla_records
    from rlhf_lightning.feedback.export import Exported, export, write_text
    from rlhf_lightning.feedback.records import read_records

    if options.format == "argilla" and options.kind != "pairs":
        raise UserError(f"Argilla's records are pairs and --kind is {options.kind}; remove --kind or --format")
    if options.format == "argilla":
        _refuse(
            options, ("ties", "decided", "reconcile"), "of rows, and Argilla's records hold every judgement; remove it"
        )
    if options.kind != "pairs":
        _refuse(options, ("ties", "reconcile"), f"of pairs and --kind is {options.kind}; remove it")
    if options.kind != "ratings":
        _refuse(options, ("criterion",), f"of ratings and --kind is {options.kind}; remove it")
    with Store(options.store) as store:
        if options.format == "argilla":
            with store.database.snapshot() as connection:
                found = Exported(argilla_records(read_records(connection)))
        else:
            found = export(store, options.kind, options.ties, options.decided, options.criterion, options.reconcile)
    skipped = "".join(f"; {count} skipped: {reason}" for reason, count in sorted(found.skipped.items()))
    if not found.rows:
        raise UserError(f"store {options.store} has no {options.kind} to export{skipped}; judge some items first")
    if options.format == "argilla":
        write_text(options.target, json.dumps(found.rows, ensure_ascii=False, indent=1) + "\n")
    else:
        write_text(options.target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    kind = options.kind if len(found.rows) > 1 else options.kind.removesuffix("s")
    print(f"{options.target}: {len(found.rows)} {kind}{skipped}")
    if options.reconcile != "majority" and (line := found.noise_line()) is not None:
        print(line)


def backup(options: argparse.Namespace) -> None:
    """Copy the store."""
    with Store(options.store) as store:
        store.database.backup(Path(options.target))
    print(f"{options.target}: a copy of {options.store}")


def invite(options: argparse.Namespace) -> None:
    """Print a link; it is shown once, as the store keeps a hash alone."""
    roles = ROLES[: ROLES.index(options.role) + 1]
    with Store(options.store, create=True) as store:
        token = store.invite(options.name, roles)
    print(f"{options.url.rstrip('/')}{INVITATION}{token}")


def forget(options: argparse.Namespace) -> None:
    """Delete a name."""
    with Store(options.store) as store:
        store.forget(options.name)
    print(f"{options.name}: forgotten; the judgements stay under a pseudonym, and earlier backups keep the name")
