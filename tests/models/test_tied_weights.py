"""Adapters on a head and an embedding that share their weight: true references, true merged exports."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.console import print_first_time
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_model_config, load_tokenizer
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.reference import build_reference

ROWS = torch.arange(5, 35)[None], torch.ones(1, 22, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
NAMES = {"gpt2": ("wte", "lm_head", "c_attn"), "qwen2": ("embed_tokens", "lm_head", "q_proj")}
NAMES["gemma"] = NAMES["qwen2"]
SEPARATED: dict[str, Callable[..., dict[str, Any]]] = {
    "head": lambda embedding, head, inner: {"target_modules": [inner, head]},
    "embedding": lambda embedding, head, inner: {"target_modules": [inner, embedding]},
    "both": lambda embedding, head, inner: {"target_modules": [inner, embedding, head]},
    "head_trained_whole": lambda embedding, head, inner: {"target_modules": [inner], "modules_to_save": [head]},
}
TOGETHER: dict[str, Callable[..., dict[str, Any]]] = {
    "inner": lambda embedding, head, inner: {"target_modules": [inner]},
    "whole_and_tied": lambda embedding, head, inner: {
        "target_modules": [inner],
        "modules_to_save": [embedding, head],
        "ensure_weight_tying": True,
    },
}


@pytest.fixture
def tied(tiny_model_folder: Callable[[str], str], tokenizer_folder: str, tmp_path: Path) -> Callable[[str], str]:
    """`tied("qwen2")`: the folder of a tiny model whose head and embedding share their weight."""

    def folder(arch: str) -> str:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder(arch))
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = True
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
        model.save_pretrained(tmp_path / arch)
        shutil.copytree(tokenizer_folder, tmp_path / arch, dirs_exist_ok=True)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / arch)
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
        return str(tmp_path / arch)

    return folder


def made_elsewhere(base: str, folder: Path, options: dict[str, Any]) -> str:
    """An adapter of peft alone that has moved away from its beginning."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **copy.deepcopy(options))
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "modules_to_save" in name:
                    value += 0.1 * torch.randn_like(value)
        model.save_pretrained(folder)
    for path in Path(base).glob("tokenizer*"):
        shutil.copy(path, folder)
    return str(folder)


@torch.no_grad()
def says(model: Any) -> torch.Tensor:
    return response_logprobs(model, *ROWS)


def assert_export_is(model: Any, expected: torch.Tensor, config: ModelConfig, folder: Path, gathered: bool) -> None:
    """The export says what the model does: as it is, merged, merged and saved, and continued here."""
    state = {name: value.clone() for name, value in model.state_dict().items()} if gathered else None
    export_model(model, load_tokenizer(config), folder / "export", [2], state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "export").eval()
        torch.testing.assert_close(says(plain), expected, rtol=0, atol=1e-4)
        merged = plain.merge_and_unload()
        torch.testing.assert_close(says(merged), expected, rtol=0, atol=1e-4)
        merged.save_pretrained(folder / "merged")
    saved = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(says(saved), expected, rtol=0, atol=1e-4)
    again = ModelConfig(str(folder / "export"))
    continued = load_causal_lm(again)
    torch.testing.assert_close(says(continued), expected, rtol=0, atol=1e-4)
    found = build_reference("adapter", again, continued, "cpu").logprobs(*ROWS, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", NAMES)
@pytest.mark.parametrize("kind", [*SEPARATED, *TOGETHER])
def test_an_adapter_made_elsewhere_has_true_references_and_exports(
    kind: str, arch: str, tied: Callable[[str], str], tmp_path: Path
) -> None:
    base = tied(arch)
    adapter = made_elsewhere(base, tmp_path / "adapter", {**SEPARATED, **TOGETHER}[kind](*NAMES[arch]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = says(peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval())
    config = ModelConfig(adapter)
    policy = load_causal_lm(config)
    torch.testing.assert_close(says(policy), expected, rtol=0, atol=1e-4)
    assert (
        expected - says(AutoModelForCausalLM.from_pretrained(base))
    ).abs().max() > 0.05  # the adapter says something
    for reference, near in {"adapter": 1e-4, "full": 1e-4, "int8": 0.5}.items():
        found = build_reference(reference, config, policy, "cpu").logprobs(*ROWS, 1.0)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=0, atol=near)
    assert_export_is(policy, expected, config, tmp_path, gathered=kind == "head")
    if (kind, arch) != ("whole_and_tied", "gpt2"):  # peft does not know the name of GPT-2's embedding, and ties nothing
        assert (tmp_path / "export" / "base").is_dir() == (kind in SEPARATED)


def test_an_adapter_whose_low_rank_weights_are_shared_is_refused(tied: Callable[[str], str], tmp_path: Path) -> None:
    options = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    adapter = made_elsewhere(tied("qwen2"), tmp_path / "adapter", options)
    with pytest.raises(UserError, match=r"shares its weights between embedding and head .* cannot be merged"):
        load_causal_lm(ModelConfig(adapter))


def trained(config: ModelConfig) -> Any:
    model = load_causal_lm(config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        response_logprobs(model, *ROWS).mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("arch", NAMES)
@pytest.mark.parametrize("kind", ["head", "embedding", "all-linear", "whole"])
def test_an_adapter_trained_here_is_exported_truly(
    kind: str, arch: str, tied: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding, head, inner = NAMES[arch]
    layers: Any = {"head": [inner, head], "embedding": [inner, embedding]}.get(kind, "all-linear")
    whole = [embedding] if kind == "whole" else []
    config = ModelConfig(tied(arch), lora=LoraOptions(r=4, target_modules=layers, modules_to_save=whole))
    model = trained(config)
    expected = says(model)
    untrained = says(AutoModelForCausalLM.from_pretrained(config.name_or_path))
    assert (expected - untrained).abs().max() > 0.01
    for reference in ("adapter", "full"):
        found = build_reference(reference, config, model, "cpu").logprobs(*ROWS, 1.0)  # type: ignore[arg-type]
        torch.testing.assert_close(found, untrained, rtol=0, atol=1e-4)
    assert_export_is(model, expected, config, tmp_path, gathered=kind == "embedding")
    assert (tmp_path / "export" / "base").is_dir() == (kind in ("head", "embedding"))


def test_separation_is_told(tied: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    print_first_time.cache_clear()
    load_causal_lm(ModelConfig(tied("qwen2"), lora=LoraOptions(target_modules=["q_proj", "lm_head"])))
    assert "the adapter changes lm_head, and the model has one weight for embedding and head" in capsys.readouterr().out


@pytest.fixture
def adapter(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> str:
    """The export of a LoRA run with rank 4 on all linear layers."""
    config = ModelConfig(tiny_model_folder("llama"), lora=LoraOptions(r=4, alpha=8, dropout=0.2))
    export_model(load_causal_lm(config), load_tokenizer(config), tmp_path / "adapter", [2])
    return str(tmp_path / "adapter")


SAME: dict[str, Any] = {"r": 4, "alpha": 8}


@pytest.mark.parametrize(
    ("options", "name", "found"),
    [({}, "r is 16", "4"), ({"r": 4}, "alpha is 32", "8"), ({**SAME, "rslora": True}, "rslora is True", "False")],
)
def test_a_lora_beside_an_adapter_with_other_numbers_is_refused_before_weights_are_loaded(
    options: dict[str, Any], name: str, found: str, adapter: str
) -> None:
    expected = (
        rf"^lora.{name}, and the adapter .*/adapter, whose training .*, has {found}; set it to {found}, or remove lora$"
    )
    with pytest.raises(UserError, match=expected):
        load_model_config(ModelConfig(adapter, lora=LoraOptions(**options)))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"target_modules": ["q_proj"]}, "target_modules"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)
def test_a_lora_beside_an_adapter_on_other_layers_is_refused(options: dict[str, Any], name: str, adapter: str) -> None:
    with pytest.raises(UserError, match=rf"^lora.{name} is .*, and the adapter .* has "):
        load_causal_lm(ModelConfig(adapter, lora=LoraOptions(**SAME, **options)))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_lora_beside_an_adapter_continues_it_with_its_dropout(dropout: float, adapter: str) -> None:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for layers in ("all-linear", linear):
        options = LoraOptions(**SAME, dropout=dropout, target_modules=layers)
        model = load_causal_lm(ModelConfig(adapter, lora=options))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_B" in key:
                    value += 0.1
        assert torch.equal(says(model), says(model)) == (dropout == 0)


def test_a_lora_beside_an_adapter_of_another_kind_is_refused(
    tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    options = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(base, options).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), tokenizer=tiny_model_folder("llama"), lora=LoraOptions())
    with pytest.raises(UserError, match=r"^lora is set, and the adapter .* is of the kind IA3; remove lora$"):
        load_model_config(config)
