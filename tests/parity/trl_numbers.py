"""Write what TRL computes on fixed inputs: `trl-1.12.json` (PPO) or `trl-1.16.json` (all else), by the TRL installed.

    python -m venv trl-1.16 && trl-1.16/bin/pip install torch==2.13.0 && trl-1.16/bin/pip install trl==1.16.0
    trl-1.16/bin/python tests/parity/trl_numbers.py tests/parity

and the same with 1.12.0, the last TRL with PPO. Every number is computed by a TRL trainer on the models and rows of
`recipe.py`; only what samples text is replaced, by the fixed responses. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import recipe
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from recipe import (
    LABELS,
    OVERLONG,
    PROMPTS,
    RESPONSES,
    SCORES,
    SECOND_SCORES,
    gradient_of,
    language_model,
    scorer,
    set_weights,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import split_tensor_dict

SETTINGS: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
GROUP = len(RESPONSES[0])


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token, `w3` is 3; `<pad>` 0, `<s>` 1, `</s>` 2."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, recipe.ARCHITECTURE["vocab_size"]))]
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def loss_and_gradient(trainer: Any, *batches: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """The trainer's own loss, summed over the parts of a step, and the gradient of that."""
    trainer.model.zero_grad()
    total = sum(trainer.compute_loss(trainer.model, batch, **kwargs) for batch in batches)
    assert isinstance(total, torch.Tensor)
    total.backward()
    return {"loss": total.item(), "gradient": gradient_of(trainer.model)}


# -- pairs ------------------------------------------------------------------------------------------------------------


def pairs() -> list[dict[str, Any]]:
    """The first two responses to each prompt as chosen and rejected."""
    return [
        {"prompt_ids": prompt, "chosen_ids": best, "rejected_ids": worst}
        for prompt, (best, worst, _) in zip(PROMPTS, RESPONSES, strict=True)
    ]


def text(ids: list[int]) -> str:
    """The words of token ids that TRL tokenises back to them, and to whose last it adds the stop token."""
    return "".join(f"w{i}" for i in ids if i > 2)


def dpo(folder: str, **options: Any) -> dict[str, Any]:
    """`DPOTrainer`'s loss on both pairs, and on each of them."""
    rows = [{name.removesuffix("_ids"): text(ids) for name, ids in pair.items()} for pair in pairs()]
    trainer = trl.DPOTrainer(
        model=language_model("policy"),
        ref_model=language_model("reference"),
        args=trl.DPOConfig(output_dir=folder, **SETTINGS, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.model.eval()
    rows = [dict(row) for row in trainer.train_dataset]
    assert [{name: row[name] for name in pairs()[0]} for row in rows] == pairs()
    both, *single = [trainer.data_collator(part) for part in (rows, rows[:1], rows[1:])]
    found = loss_and_gradient(trainer, both)
    found["of_each_pair"] = [float(trainer.compute_loss(trainer.model, one)) for one in single]
    return {"options": options, **found}


def dpo_cases(folder: str) -> dict[str, Any]:
    """The losses that the library has, and AOT, which on a single pair is conservative DPO."""
    return {
        "dpo/sigmoid": dpo(folder, loss_type=["sigmoid"], beta=0.1),
        "dpo/sigmoid beta 0.5": dpo(folder, loss_type=["sigmoid"], beta=0.5),
        "dpo/ipo": dpo(folder, loss_type=["ipo"], beta=0.2),
        "dpo/aot": dpo(folder, loss_type=["aot"], beta=0.5, label_smoothing=0.2),
        "dpo/hinge": dpo(folder, loss_type=["hinge"], beta=0.5),
        "dpo/apo_zero": dpo(folder, loss_type=["apo_zero"], beta=0.5),
        "dpo/robust": dpo(folder, loss_type=["robust"], beta=0.5, label_smoothing=0.2),
        "dpo/ld": dpo(folder, loss_type=["sigmoid"], beta=0.5, ld_alpha=0.3),
        "dpo/rpo": dpo(folder, loss_type=["sigmoid", "sft"], beta=0.5, loss_weights=[1.0, 0.7]),
    }


def concatenated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch of `ORPOTrainer` and `CPOTrainer`, right padded; -100 labels the prompt and the padding."""
    batch: dict[str, Any] = {}
    for name in ("chosen", "rejected"):
        ids = [row["prompt_ids"] + row[f"{name}_ids"] for row in rows]
        labels = [[-100] * len(row["prompt_ids"]) + row[f"{name}_ids"] for row in rows]
        width = max(map(len, ids))
        batch[f"{name}_input_ids"] = torch.tensor([each + [0] * (width - len(each)) for each in ids])
        batch[f"{name}_labels"] = torch.tensor([each + [-100] * (width - len(each)) for each in labels])
        batch[f"{name}_attention_mask"] = torch.tensor([[1] * len(e) + [0] * (width - len(e)) for e in ids])
    return batch


def without_reference(folder: str, trainer: type[Any], config: type[Any], **options: Any) -> Any:
    """A trainer without a reference, whose data set is not used."""
    rows = [{name.removesuffix("_ids"): text(ids) for name, ids in pair.items()} for pair in pairs()]
    made = trainer(
        model=language_model("policy"),
        args=config(output_dir=folder, **SETTINGS, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    made.model.eval()
    return made


def reference_free_cases(folder: str) -> dict[str, Any]:
    """SimPO, and the odds-ratio term of ORPO by TRL's own functions; TRL's NLL term is of the prompt too."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 1.375}
    simpo = without_reference(folder, CPOTrainer, CPOConfig, **options)
    found = {"simpo": {"options": options, **loss_and_gradient(simpo, concatenated(pairs()))}}
    simpo_pairs = [float(simpo.compute_loss(simpo.model, concatenated([pair]))) for pair in pairs()]
    found["simpo"]["of_each_pair"] = simpo_pairs
    orpo = without_reference(folder, ORPOTrainer, ORPOConfig, beta=0.3)

    def odds(rows: list[dict[str, Any]]) -> torch.Tensor:
        chosen, rejected = orpo.concatenated_forward(orpo.model, concatenated(rows))[:2]
        return -orpo.odds_ratio_loss(chosen, rejected)[0].mean()

    orpo.model.zero_grad()
    loss = odds(pairs())
    loss.backward()
    found["orpo"] = {"options": {"beta": 0.3}, "loss": loss.item(), "gradient": gradient_of(orpo.model)}
    found["orpo"]["of_each_pair"] = [float(odds([pair])) for pair in pairs()]
    return {f"reference_free/{name}": case for name, case in found.items()}


def kto(folder: str, model: str, reference: str, **options: Any) -> dict[str, Any]:
    """`KTOTrainer`'s loss on four labelled responses, each prompt also with the response to the next one."""
    own = [(prompt, ids) for prompt, every in zip(PROMPTS, RESPONSES, strict=True) for ids in every[:2]]
    labelled = [{"prompt": text(p), "completion": text(ids), "label": True} for p, ids in own]
    trainer = trl.KTOTrainer(
        model=language_model(model),
        ref_model=language_model(reference),
        args=trl.KTOConfig(output_dir=folder, per_device_train_batch_size=4, **SETTINGS, **options),
        train_dataset=Dataset.from_list(labelled),
        processing_class=tokenizer(),
    )
    trainer.model.eval()
    after = [ids for _, ids in own[1:] + own[:1]]
    rows = [
        {"prompt_ids": prompt, "completion_ids": ids, "KL_completion_ids": other, "label": label}
        for (prompt, ids), other, label in zip(own, after, LABELS, strict=True)
    ]
    return {"options": options, "roles": [model, reference], **loss_and_gradient(trainer, trainer.data_collator(rows))}


def kto_cases(folder: str) -> dict[str, Any]:
    """One case whose z is above 0, and one in which it is cut off at 0."""
    weights = {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    return {
        "kto/one way": kto(folder, "policy", "reference", **weights),
        "kto/the other way": kto(folder, "reference", "policy", **weights),
    }


def reward_cases(folder: str) -> dict[str, Any]:
    """`RewardTrainer`'s loss, plain, with margins, and with centring on top."""
    cases = {}
    for name, margins, centering in (("plain", None, None), ("margin", [0.3, 1.5], None), ("both", [0.3, 1.5], 0.01)):
        rows: list[dict[str, Any]] = [
            {
                "chosen_ids": pair["prompt_ids"] + pair["chosen_ids"],
                "rejected_ids": pair["prompt_ids"] + pair["rejected_ids"],
            }
            for pair in pairs()
        ]
        for row, margin in zip(rows, margins or [], strict=False):
            row["margin"] = margin
        trainer = trl.RewardTrainer(
            model=scorer("reward"),
            args=trl.RewardConfig(output_dir=folder, center_rewards_coefficient=centering, **SETTINGS),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        trainer.model.eval()
        batch = trainer.data_collator(rows)
        with torch.no_grad():
            scores = trainer.model(**{k: v for k, v in batch.items() if k != "margin"}).logits.squeeze(-1).tolist()
        found = loss_and_gradient(trainer, batch)
        cases[f"reward/{name}"] = {"margins": margins, "centering": centering, "scores": scores, **found}
    return cases


def sft_cases(folder: str) -> dict[str, Any]:
    """`SFTTrainer`'s loss of an optimiser step of two parts of unequal length, on completions and on whole texts."""
    cases = {}
    for name, completion_only in (("completion", True), ("whole", False)):
        rows = [{"prompt": text(p), "completion": text(c[0])} for p, c in zip(PROMPTS, RESPONSES, strict=True)]
        trainer = trl.SFTTrainer(
            model=language_model("policy"),
            args=trl.SFTConfig(output_dir=folder, completion_only_loss=completion_only, **SETTINGS),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        trainer.model.eval()
        rows = [dict(row) for row in trainer.train_dataset]
        parts = [trainer.data_collator([row]) for row in rows]
        batches, tokens = trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))
        found = loss_and_gradient(trainer, *batches, num_items_in_batch=tokens)
        cases[f"sft/{name}"] = {"tokens": [row["input_ids"] for row in rows], "counted": int(tokens), **found}
    return cases


# -- groups -----------------------------------------------------------------------------------------------------------


def flat(nested: list[list[Any]]) -> list[Any]:
    """One list of all groups."""
    return [item for group in nested for item in group]


def several(scores: list[Any]) -> list[Any]:
    """The scores of each reward; they are those of one unless they are lists."""
    return scores if isinstance(scores[0], list) else [scores]


def online_trainer(folder: str, kind: str, scores: list[Any], parts: int, options: dict[str, Any]) -> Any:
    """A `GRPOTrainer` or `RLOOTrainer` whose generation returns the fixed responses and whose reward the fixed scores."""
    language_model("reference").save_pretrained(f"{folder}/reference")
    policy = language_model("old")
    policy.config._name_or_path = f"{folder}/reference"  # TRL loads its reference from where the policy came from
    settings = {**SETTINGS, "num_generations": GROUP, "per_device_train_batch_size": len(flat(RESPONSES)) // parts}
    settings |= {"gradient_accumulation_steps": parts, "steps_per_generation": parts}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy,
        reward_funcs=[lambda completions, each=each, **_: each for each in several(scores)],
        args=getattr(trl, f"{kind}Config")(output_dir=folder, num_iterations=2, **settings, **options),
        train_dataset=Dataset.from_list([{"prompt": text(prompt)} for prompt in PROMPTS]),
        processing_class=tokenizer(),
    )
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    generated = [text(ids) for ids in flat(RESPONSES)]
    without = (None, generated, None, {}, None, [])  # no tools, no log-probabilities of a sampler, no images
    more = without if kind == "GRPO" else (generated,)
    trainer._generate = lambda _: (prompts, flat(RESPONSES), *more)
    trainer.current_gradient_accumulation_steps = parts  # as its training loop sets it
    return trainer


def online(folder: str, kind: str, scores: list[Any], parts: int = 1, **options: Any) -> dict[str, Any]:
    """What the old policy's rollout gives, and the loss of the policy that has moved on since, in `parts` of a step."""
    trainer = online_trainer(folder, kind, scores, parts, options)
    rollout = trainer._generate_and_score_completions(
        [{"prompt": text(prompt)} for prompt in PROMPTS for _ in range(GROUP)]
    )
    recorded = {"options": options, "parts": parts, "scores": scores, "advantages": rollout["advantages"].tolist()}
    for name in ("old_per_token_logps", "ref_per_token_logps", "old_logps"):
        if name in rollout:
            recorded[name] = rollout[name].tolist()
    if kind == "RLOO":
        recorded["on_policy"] = loss_and_gradient(trainer, rollout)
    set_weights(trainer.accelerator.unwrap_model(trainer.model), "policy")
    return {**recorded, **loss_and_gradient(trainer, *split_tensor_dict(rollout, parts))}


def online_cases(folder: str) -> dict[str, Any]:
    """GRPO's aggregations and KL, and RLOO."""
    scores = flat(SCORES)
    unscored = [*scores[:4], None, scores[5]]
    tied = [0.5, 0.5, 0.5, *scores[3:]]

    def grpo(scores: list[Any] = scores, **options: Any) -> dict[str, Any]:
        return online(
            folder, "GRPO", scores, **{"beta": 0.0, "temperature": 0.9, "max_completion_length": 8, **options}
        )

    sequence = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1}
    capped = {"loss_type": "cispo", "epsilon_high": 1.1}
    gdpo = {"loss_type": "grpo", "multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]}

    def rloo(scores: list[float | None] = scores, **options: Any) -> dict[str, Any]:
        return online(folder, "RLOO", scores, **{"temperature": 0.9, "max_completion_length": 8, **options})

    return {
        "grpo/grpo": grpo(loss_type="grpo"),
        "grpo/dapo": grpo(loss_type="dapo", epsilon_high=0.28),
        "grpo/grpo in parts": grpo(loss_type="grpo", parts=2),
        "grpo/dapo in parts": grpo(loss_type="dapo", parts=2, epsilon_high=0.28),
        "grpo/dr_grpo in parts": grpo(loss_type="dr_grpo", parts=2, scale_rewards="none"),
        "grpo/dr_grpo": grpo(loss_type="dr_grpo", scale_rewards="none"),
        "grpo/kl by default": grpo(loss_type="grpo", beta=0.5),
        "grpo/kl": grpo(loss_type="grpo", beta=0.5, use_bias_correction_kl=False),
        "grpo/kl bias-corrected": grpo(loss_type="grpo", beta=0.5, use_bias_correction_kl=True),
        "grpo/dapo kl": grpo(loss_type="dapo", beta=0.5, use_bias_correction_kl=True, epsilon=0.1),
        "grpo/delta": grpo(loss_type="bnpo", epsilon=0.05, delta=1.1),
        "grpo/unscored": grpo(unscored, loss_type="grpo"),
        "grpo/tied": grpo(tied, loss_type="grpo"),
        "gspo/plain": grpo(**sequence),
        "gspo/in parts": grpo(**sequence, parts=2),
        "cispo/plain": grpo(**capped),
        "cispo/in parts": grpo(**capped, parts=2),
        "gdpo/plain": grpo([scores, SECOND_SCORES], **gdpo),
        "dapo/overlong": {"options": [8, 5], "penalty": get_soft_overlong_punishment(8, 5)(OVERLONG)},
        "rloo/plain": rloo(beta=0.0),
        "rloo/kl": rloo(beta=0.3),
        "rloo/unscored": rloo(unscored, beta=0.3),
    }


def distillation_cases(folder: str) -> dict[str, Any]:
    """The loss of `IWOPDTrainer` by its own function, of the policy that generated, with the role `reference` as the teacher."""
    from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer

    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    responses, longest = flat(RESPONSES), max(map(len, PROMPTS))
    left = [[0] * (longest - len(prompt)) for prompt in prompts]
    right = [[0] * (max(map(len, responses)) - len(ids)) for ids in responses]
    rows = list(zip(left, prompts, responses, right, strict=True))
    tokens = torch.tensor([before + prompt + ids + after for before, prompt, ids, after in rows])
    mask = torch.tensor([before + [1] * len(prompt + ids) + after for before, prompt, ids, after in rows])
    labels = tokens.masked_fill(mask == 0, -100)[:, longest:]

    def logits(model: Any) -> torch.Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[:, longest - 1 : -1]

    student = language_model("old")
    with torch.no_grad():
        teacher = logits(language_model("reference")).div(0.9).log_softmax(-1)
    actual = teacher.gather(-1, tokens[:, longest:, None]).squeeze(-1)
    trainer = SimpleNamespace(
        temperature=0.9,
        iw_opd_epsilon=1e-8,
        iw_opd_gamma=0.0,
        model=student,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer.accelerator = SimpleNamespace(gather=lambda x: x, num_processes=1)
    loss = IWOPDTrainer._compute_iw_opd_loss(trainer, logits(student), tokens[:, longest:], labels, actual)
    loss.backward()
    return {"distillation/reverse": {"temperature": 0.9, "loss": loss.item(), "gradient": gradient_of(student)}}


def numbers(version: str, folder: str) -> dict[str, Any]:
    """The cases of the TRL that is installed.

    Raises:
        SystemExit: another TRL than the two whose numbers are kept.
    """
    if version == "1.12":
        from ppo_numbers import ppo_cases

        return ppo_cases(folder, tokenizer(), SETTINGS)
    if version == "1.16":
        offline = {**dpo_cases(folder), **reference_free_cases(folder), **kto_cases(folder)}
        return {
            **offline,
            **reward_cases(folder),
            **sft_cases(folder),
            **online_cases(folder),
            **distillation_cases(folder),
        }
    raise SystemExit(f"trl {trl.__version__} is installed; install trl==1.12.0 for PPO or trl==1.16.0 for all else")


def readable(recorded: dict[str, Any]) -> str:
    """JSON with lists of numbers on one line each, and no more digits than a float32 has."""
    rounded = json.loads(json.dumps(recorded), parse_float=lambda digits: float(f"{float(digits):.9g}"))
    lines = json.dumps(rounded, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), lines) + "\n"


def main(target: str) -> None:
    """Compute, write, and say with what."""
    torch.set_num_threads(1)
    transformers.set_seed(0)  # the order of PPO's rows, and so the last digit of its sums
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    version = ".".join(trl.__version__.split(".")[:2])
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        cases = numbers(version, folder)
    held = {
        name: getattr(recipe, name) for name in ("ARCHITECTURE", "ROLES", "PROMPTS", "RESPONSES", "RECORDED_ENTRIES")
    }
    recorded = {"made_with": versions, "recipe": held, "cases": cases}
    path = Path(target) / f"trl-{version}.json"
    path.write_text(readable(recorded))
    print(f"{len(cases)} cases with {versions} in {path}, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1])
