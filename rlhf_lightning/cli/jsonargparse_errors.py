"""jsonargparse's reports, often of several pages, reduced to one line with the nearest valid name."""

from __future__ import annotations

import inspect
import re
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.algorithms import Algorithm, KLPenalty
from rlhf_lightning.cli.plugin_families import subclasses
from rlhf_lightning.errors import nearest, one_line
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.loading import LoraOptions, ModelConfig
from rlhf_lightning.rewards import Reward
from rlhf_lightning.stages.stage import Stage

LONGEST_REPORT = 20_000
UNKNOWN_KEY = (
    r"[Uu]nrecognized arguments?: -*(\S+?)(?:[=\s]|$)",
    r"Option '([^']+)' is not accepted",
    r"does not accept option '([^']+)'",
    r"[Kk]ey '?\"?([\w.]+)'?\"? is not expected",
)
UNKNOWN_CLASS = (
    r"Expected a dot import path string: (\S+)",
    r"Import path (\S+) does not correspond",
)
IMPORT_FAULT = (
    r"Problem with given class_path '([^']+)': (No module named '([^']+)'|module '\S+' has no attribute '\w+'|"
    r"cannot import name '\w+' from '[\w.]+')"
)
NO_SUBCLASS = r"Import path (?:\S+ )?does not correspond to a subclass of (\w+).*?Given value: (\S+)"
WRONG_UNION = r"Subtypes: \[(.*?)\] Errors: .*?Given value: (.+?)(?: - |$)"
WRONG_VALUE = r"Expected (?:a |an )?(.+?)\.? Got value: (.+?)(?: - |$)"
TRANSLATED = (
    r"(?:unknown key|there is no class) .+?; (?:did you mean '[^']+'\?|expected one of: [\w.]+(?:, [\w.]+)*)",
    r"class_path '[^']+' of \S+ cannot be imported: (?:No module named '[^']+'|cannot import name '\w+' from '[\w.]+')",
    r"(?:this key|\S+) is \S+, which is no \w+ class(?:; set it to .+?\}\} for a function)?",
    r"\S+ must be .+?, found ('[^']*'|\"[^\"]*\")",
    r"\S+ is required and not given",
)
"""Messages of this module about a nested parser, inside the report of the parser around it."""
NO_VALUE = r"argument -*([\w.]+): expected (?:one|at least one) argument"
SUBCOMMAND = r"^(fit|validate|test|predict)\."
REQUIRED = r"[Kk]ey \"([\w.]+)\" is required|option '?\"?([\w.]+)\"?'? is required|the following arguments are required: ([\w.]+)"


def one_line_error(parser: Any, message: str) -> str:
    """Reduce a report to its innermost fault; an unknown name comes with the nearest valid one."""
    text = one_line(message, LONGEST_REPORT)
    where = ".".join(dict.fromkeys(re.findall(r"Parser key \"([^\"]+)\"", text)))
    for pattern in TRANSLATED:
        if found := re.search(rf"({pattern})(?: \(in ([\w.]+)\))?", text):
            path = ".".join(part for part in (where, found.groups()[-1]) if part)
            return f"{found.group(1)} (in {path})" if path else found.group(1)
    for pattern in UNKNOWN_KEY:
        if found := re.search(pattern, text):
            return _unknown_key(parser, where, found.group(1))
    if found := re.search(WRONG_VALUE, text):
        return f"{where or 'an option'} must be {_type(found.group(1))}, found {found.group(2)!r}"
    if found := re.search(NO_VALUE, text):
        return (
            f"{found.group(1)} or an option below it has no value; where the value begins with a dash, pass --KEY=VALUE"
        )
    if found := re.search(REQUIRED, text):
        key = ".".join(part for part in (where, *found.groups()) if part)
        return f"{re.sub(SUBCOMMAND, '', key)} is required and not given"
    return _no_class(where, text) or text[:400]


def _no_class(where: str, text: str) -> str | None:
    """Describe a value that is no class, if the key takes a class."""
    if found := re.search(IMPORT_FAULT, text):
        path, fault, module = found.groups()
        of_another = module and not f"{path}.".startswith(f"{module}.")
        unlike_any = "did you mean" not in _unknown_class(where, path)
        if "cannot import" in fault or of_another or unlike_any:
            return f"class_path {path!r} of {where or 'this key'} cannot be imported: {fault}"
        return _unknown_class(where, path)
    if found := re.search(NO_SUBCLASS, text):
        base, path = found.groups()
        key = where or "this key"
        function = f"; set it to {{class_path: FunctionReward, init_args: {{function: {path}}}}} for a function"
        return f"{key} is {path}, which is no {base} class{function if base == 'Reward' else ''}"
    if _base_of(where) is None and (found := re.search(WRONG_UNION, text)):
        kinds = " or ".join(map(_type, re.split(r", (?![^\[]*\])", found.group(1)))).replace("NoneType", "null")
        return f"{where or 'an option'} must be {kinds}, found {found.group(2)!r}"
    for pattern in UNKNOWN_CLASS:
        if found := re.search(pattern, text):
            return _unknown_class(where, found.group(1).strip(".,"))
    return None


def _unknown_class(where: str, name: str) -> str:
    return f"there is no class {name!r} for {where or 'this key'}; {nearest(name.split('.')[-1], _classes(where))}"


def _unknown_key(parser: Any, where: str, name: str) -> str:
    full, leaf = f"{where}.{name}" if where else name, name.split(".")[-1]
    if where or name.startswith(("model.", "data.")):
        return f"unknown key {full!r}; {nearest(leaf, _parameters(full))}"
    known = _options(parser)
    tops = {option.split(".")[0] for option in known}
    if name.split(".")[0] not in tops:
        return f"unknown key {full!r}; {nearest(name.split('.')[0], tops)}"
    return f"unknown key {full!r}; {nearest(name, known)}"


def _options(parser: Any) -> set[str]:
    """Collect the options of a parser and of its subcommands."""
    known = set()
    for action in parser._actions:
        choices = getattr(action, "choices", None)
        if isinstance(choices, dict):
            known |= {option for nested in choices.values() for option in _options(nested)}
        elif action.option_strings:
            known.add(action.dest)
    return known - {"help", "print_config", "print_shtab"}


def _type(text: str) -> str:
    literal = re.search(r"Literal\[(.*)\]", text)
    if literal:
        return f"one of {literal.group(1)}"
    return re.sub(r"<class '(?:[\w]+\.)*(\w+)'>", r"\1", text)


def _bases() -> dict[str, type]:
    """Map the key under which a plug-in is found to its family."""
    return {
        "model": Stage,
        "data": LightningDataModule,
        "algorithm": Algorithm,
        "reward": Reward,
        "rewards": Reward,
        "evaluation_rewards": Reward,
        "generation": Generator,
        "callbacks": Callback,
        "logger": Logger,
        "optimizer": Optimizer,
        "lr_scheduler": LRScheduler,
    }


def _base_of(where: str) -> type | None:
    """Return the family of the innermost key of a path that takes a plug-in."""
    bases = _bases()
    return next((bases[key] for key in reversed(where.split(".")) if key in bases), None)


def _classes(where: str) -> set[str]:
    base = _base_of(where)
    families = [base] if base else list(_bases().values())
    return {found.__name__ for family in families for found in subclasses(family) if not found.__name__.startswith("_")}


def _parameters(full: str) -> set[str]:
    """Collect the constructor parameters of the plug-ins and option groups that a path can lead to."""
    bases = _bases()
    groups = {"kl": KLPenalty, "lora": LoraOptions, "policy": ModelConfig}
    for key in reversed(full.split(".")[:-1]):
        if key in groups:
            return set(inspect.signature(groups[key]).parameters)
        if key in bases:
            names = {name for each in subclasses(bases[key]) for name in inspect.signature(each).parameters}
            return names - {"args", "kwargs"}
    return set(inspect.signature(ModelConfig).parameters)
