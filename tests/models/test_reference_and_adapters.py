"""References, adapters and quantised bases on four architectures."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.models.adapters import REFERENCE, is_adapted, reference_view
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_reward_model, load_tokenizer
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.quantization import dequantize_, quantize_
from rlhf_lightning.models.reference import CopiedReference, ReferenceModel, build_reference
from tests.conftest import ARCHITECTURES

Folder = Callable[[str], str]
Rows = tuple[Tensor, Tensor, Tensor]
LORA = LoraOptions(r=4)


@pytest.fixture
def rows() -> Rows:
    """Three rows, one prompt left padded, one response shorter."""
    tokens = torch.randint(3, 290, (3, 12), generator=torch.Generator().manual_seed(0))
    prompt_mask, mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool)
    prompt_mask[0, :2], mask[1, 4:] = False, False
    return tokens, prompt_mask, mask


def gap(model: nn.Module, kind: str, config: ModelConfig, rows: Rows) -> float:
    with torch.no_grad():
        logprobs = response_logprobs(model, *rows)
    reference = build_reference(kind, config, model, "cpu")  # type: ignore[arg-type]
    return kl_estimate(logprobs, reference.logprobs(*rows, 1.0), "k3")[rows[2]].mean().item()


def test_another_model_is_a_reference(tiny_model_folder: Folder, rows: Rows) -> None:
    """Its own log-probabilities, at the temperature, frozen; quantised ones are near."""
    folder = tiny_model_folder("gpt2")
    model = load_causal_lm(ModelConfig(folder))
    with torch.no_grad():
        expected = response_logprobs(model, *rows, 0.7)
    reference = ReferenceModel(folder).load("cpu")
    torch.testing.assert_close(reference.logprobs(*rows, 0.7), expected)
    assert not any(p.requires_grad or p.grad is not None for p in reference._model.parameters())  # type: ignore[attr-defined]
    quantized = ReferenceModel(folder, quantization="int8").load("cpu").logprobs(*rows, 0.7)
    assert 0 < float((quantized - expected).abs().max()) < 0.5


def test_an_adapter_is_a_reference(tiny_model_folder: Folder, rows: Rows, tmp_path: Path) -> None:
    trained = load_causal_lm(ModelConfig(tiny_model_folder("llama"), lora=LORA))
    train_a_little(trained)
    trained.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = response_logprobs(trained, *rows)
    found = ReferenceModel(str(tmp_path / "adapter")).load("cpu").logprobs(*rows, 1.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", ["swapped", "missing"])
def test_a_reference_of_another_vocabulary_is_refused(
    tokenizer: Any, tokenizer_folder: str, tmp_path: Path, change: str
) -> None:
    ReferenceModel(tokenizer_folder).check_vocabulary(tokenizer)
    policy = copy.deepcopy(tokenizer)
    policy.add_tokens(["<think>"])
    if change == "missing":
        with pytest.raises(
            UserError, match=r"another vocabulary .* token \d+ is not in its vocabulary, and '<think>' in the"
        ):
            ReferenceModel(tokenizer_folder).check_vocabulary(policy)
        return
    policy.save_pretrained(tmp_path)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<tool>"])
    with pytest.raises(UserError, match=r"token \d+ is '<think>', and '<tool>' in the policy; set model.reference to"):
        ReferenceModel(str(tmp_path)).check_vocabulary(other)
    exchanged = copy.deepcopy(tokenizer)
    exchanged.add_tokens(["<tool>", "<think>"])  # the same tokens in another order
    policy.add_tokens(["<tool>"])
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"token \d+ is '<think>', and '<tool>' in the policy; set model.reference to"):
        ReferenceModel(str(tmp_path)).check_vocabulary(exchanged)


def train_a_little(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gaps(tiny_model_folder: Folder, rows: Rows, arch: str, dtype: str) -> None:
    full = ModelConfig(tiny_model_folder(arch), dtype=dtype)  # type: ignore[arg-type]
    model = load_causal_lm(full)
    nf4, int8 = gap(model, "nf4", full, rows), gap(model, "int8", full, rows)
    assert gap(model, "full", full, rows) == 0
    assert 0 < int8 < 1e-3
    assert 2 * int8 < nf4 < 0.1
    assert gap(model, "auto", full, rows) == nf4
    adapted = dataclasses.replace(full, lora=LORA)
    policy = load_causal_lm(adapted)
    assert gap(policy, "adapter", adapted, rows) == gap(policy, "full", adapted, rows) == 0
    assert gap(policy, "nf4", adapted, rows) == nf4


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_learns_through_its_adapter_only(
    tiny_model_folder: Folder, rows: Rows, arch: str, kind: str
) -> None:
    config = ModelConfig(tiny_model_folder(arch), quantization=kind, lora=LORA)  # type: ignore[arg-type]
    policy = load_causal_lm(config)
    base = {name: value.clone() for name, value in policy.named_parameters() if "lora_" not in name}
    first = response_logprobs(policy.train(), *rows)
    (-first.sum()).backward()
    trained = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in policy.named_parameters() if "lora_" in name}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    optimizer.step()
    assert response_logprobs(policy.eval(), *rows).sum() > first.sum()
    assert all(torch.equal(value, base[name]) for name, value in policy.named_parameters() if name in base)
    assert gap(load_causal_lm(config), "adapter", config, rows) == 0
    assert gap(policy, "adapter", config, rows) > 0
    assert gap(load_causal_lm(config), kind, config, rows) == 0
    assert gap(load_causal_lm(config), "full", config, rows) > 0, (
        "the reference takes its own quantisation, not the policy's"
    )


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_numbers_depend_neither_on_mode_nor_on_neighbours(
    tiny_model_folder: Folder, rows: Rows, arch: str, kind: str, dtype: str
) -> None:
    pack = dtype == "float32"  # in 16 bits packed rows round otherwise than a row alone
    config = ModelConfig(tiny_model_folder(arch), dtype=dtype, pack=pack)  # type: ignore[arg-type]
    model = quantize_(load_causal_lm(config), kind)  # type: ignore[arg-type]
    with torch.no_grad():
        trained = response_logprobs(model.train(), *rows)
        evaluated = response_logprobs(model.eval(), *rows)
        model.get_input_embeddings().weight[289] *= 100  # an outlier, in a token of the last row alone
        lone = response_logprobs(model, *(part[:1] for part in rows))
        tokens = rows[0].clone()
        tokens[-1] = 289
        beside = response_logprobs(model, tokens, *rows[1:])[:1]
    assert torch.equal(trained, evaluated)
    assert torch.allclose(lone, beside, atol=1e-4 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantisation_spares_the_head_and_can_be_undone_but_for_rounding(
    tiny_model_folder: Folder, rows: Rows, arch: str, kind: str
) -> None:
    original = load_causal_lm(ModelConfig(tiny_model_folder(arch)))
    model = quantize_(copy.deepcopy(original), kind)  # type: ignore[arg-type]
    assert torch.equal(model.get_output_embeddings().weight, original.get_output_embeddings().weight)
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        quantised = response_logprobs(model, *rows)
        restored = dequantize_(copy.deepcopy(model))
        assert torch.allclose(quantised, response_logprobs(restored, *rows), atol=1e-5)
    shapes = {name: value.shape for name, value in original.state_dict().items()}
    assert {name: value.shape for name, value in restored.state_dict().items()} == shapes


def test_a_copy_is_of_the_beginning_and_cannot_be_trained(tiny_model_folder: Folder, rows: Rows) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    policy = load_causal_lm(config)
    before = response_logprobs(policy, *rows)
    train_a_little(policy)
    reference = build_reference("full", config, policy, "cpu")
    assert torch.equal(reference.logprobs(*rows, 1.0), before), "a resumed run must get the same reference"
    assert not isinstance(reference, nn.Module)
    holder = nn.Module()
    holder.policy, holder.reference = policy, reference  # type: ignore[assignment]
    holder.train()
    assert isinstance(reference, CopiedReference)
    assert not reference._model.training
    assert not reference.logprobs(*rows, 1.0).requires_grad
    assert not any("reference" in name for name in holder.state_dict())


@pytest.mark.parametrize("kind", ["full", "nf4"])
def test_the_reference_of_a_model_from_scratch_is_that_model(tokenizer_folder: str, rows: Rows, kind: str) -> None:
    config = ModelConfig(config={"model_type": "llama", **ARCHITECTURES["llama"]}, tokenizer=tokenizer_folder, seed=5)
    model = load_causal_lm(config)
    torch.manual_seed(123)
    value = gap(model, kind, config, rows)
    assert value == 0 if kind == "full" else 0 < value < 0.01


def test_temperature_divides_the_reference_too(tiny_model_folder: Folder, rows: Rows) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    policy = load_causal_lm(dataclasses.replace(config, lora=LORA))
    for reference in (build_reference(kind, config, policy, "cpu") for kind in ("full", "adapter")):  # type: ignore[arg-type]
        cold = reference.logprobs(*rows, 0.5)
        assert not torch.allclose(cold, reference.logprobs(*rows, 1.0))
        assert torch.equal(cold, response_logprobs(load_causal_lm(config), *rows, 0.5))


def test_adapter_needs_an_adapter(tiny_model_folder: Folder) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    with pytest.raises(UserError, match=r"the policy has no adapter; set policy.lora"):
        build_reference("adapter", config, load_causal_lm(config), "cpu")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_adapter_has_its_dropout_from_the_first_pass(tiny_model_folder: Folder, rows: Rows, dropout: float) -> None:
    config = ModelConfig(tiny_model_folder("llama"), lora=dataclasses.replace(LORA, dropout=dropout))
    model = load_causal_lm(config)
    train_a_little(model)
    with torch.no_grad():
        assert torch.equal(response_logprobs(model, *rows), response_logprobs(model, *rows)) == (dropout == 0)


@pytest.fixture
def trained_adapter(tiny_model_folder: Folder, tmp_path: Path) -> Callable[[str], tuple[str, nn.Module]]:
    """An adapter that learned something, exported, and the model that it was exported from."""

    def make(arch: str) -> tuple[str, nn.Module]:
        config = ModelConfig(tiny_model_folder(arch), lora=dataclasses.replace(LORA, dropout=0.3))
        model = load_causal_lm(config)
        train_a_little(model)
        export_model(model, load_tokenizer(config), tmp_path / arch, [2])
        return str(tmp_path / arch), model.eval()

    return make


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_a_trained_adapter_resumes_and_is_the_reference(
    trained_adapter: Callable[[str], tuple[str, nn.Module]], rows: Rows, arch: str
) -> None:
    folder, exported = trained_adapter(arch)
    config = ModelConfig(folder)
    policy = load_causal_lm(config)
    with torch.no_grad():
        start = response_logprobs(exported, *rows)
        assert torch.equal(response_logprobs(policy.train(), *rows), start), "it goes on where it was, without dropout"
    assert gap(policy, "adapter", config, rows) == gap(policy, "full", config, rows) == 0
    assert 0 < gap(policy, "nf4", config, rows) < 0.3
    trains = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trains
    assert all("lora_" in name and REFERENCE not in name for name in trains)
    assert any(REFERENCE in name for name, _ in policy.named_parameters())
    train_a_little(policy)
    reference = build_reference("auto", config, policy, "cpu")
    assert reference.kind == "adapter"
    assert torch.equal(reference.logprobs(*rows, 1.0), start)
    assert not torch.equal(response_logprobs(policy, *rows), start)


@pytest.mark.parametrize("continued", [False, True])
def test_disabling_the_adapter_changes_nothing(
    tiny_model_folder: Folder, trained_adapter: Callable[[str], tuple[str, nn.Module]], rows: Rows, continued: bool
) -> None:
    config = (
        ModelConfig(trained_adapter("llama")[0]) if continued else ModelConfig(tiny_model_folder("llama"), lora=LORA)
    )
    policy = load_causal_lm(config)
    train_a_little(policy)
    before = [(name, p.requires_grad) for name, p in policy.named_parameters()]
    logprobs = response_logprobs(policy, *rows)
    build_reference("adapter", config, policy, "cpu").logprobs(*rows, 1.0)
    with reference_view(policy):
        assert [(name, p.requires_grad) for name, p in policy.named_parameters()] == before
        assert not torch.equal(response_logprobs(policy, *rows), logprobs)
    with pytest.raises(ZeroDivisionError), reference_view(policy):
        _ = 1 / 0
    assert [(name, p.requires_grad) for name, p in policy.named_parameters()] == before
    assert torch.equal(response_logprobs(policy, *rows), logprobs)


def test_lora_options_change_the_adapter(tiny_model_folder: Folder) -> None:
    options = LoraOptions(r=3, alpha=6, target_modules=["q_proj"], rslora=True)
    model = load_causal_lm(ModelConfig(tiny_model_folder("llama"), lora=options))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == pytest.approx(6 / 3**0.5)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2
    every = load_causal_lm(ModelConfig(tiny_model_folder("llama"), lora=LORA))
    assert sum("lora_A" in name for name, _ in every.named_parameters()) == 14
    assert not any("lm_head" in name and "lora" in name for name, _ in every.named_parameters())


def test_a_reward_models_adapter_trains_its_head_too(tiny_model_folder: Folder) -> None:
    model = load_reward_model(ModelConfig(tiny_model_folder("gpt2"), lora=LORA, quantization="nf4"))
    assert is_adapted(model)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trains if "lora_" not in name} == {"base_model.model.score.modules_to_save.default.weight"}


def test_nothing_is_printed(
    tiny_model_folder: Folder, rows: Rows, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    config = ModelConfig(tiny_model_folder("gpt2"), lora=LORA, quantization="nf4")
    policy = load_causal_lm(config)
    response_logprobs(policy, *rows).sum().backward()
    build_reference("int8", config, policy, "cpu").logprobs(*rows, 1.0)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)] == []


@pytest.mark.parametrize(
    ("options", "labels", "expected"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), 0, "prompt learning"),
        (peft.LoraConfig(task_type="CAUSAL_LM", r=2, bias="all"), 0, "only 1 adapter with bias"),
        (peft.LoraConfig(task_type="SEQ_CLS", r=2), 2, r"size mismatch for .*score.*\[2, 32\]"),
    ],
)
def test_adapters_that_cannot_be_trained_further_are_refused_in_a_line(
    tiny_model_folder: Folder, tmp_path: Path, options: peft.PeftConfig, labels: int, expected: str
) -> None:
    base, auto = tiny_model_folder("llama"), AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = auto.from_pretrained(base, **({"num_labels": labels} if labels else {}))
    peft.get_peft_model(model, copy.deepcopy(options)).save_pretrained(tmp_path)
    load = load_reward_model if labels else load_causal_lm
    with pytest.raises(UserError, match=rf"^the adapter {tmp_path} cannot be trained further: .*{expected}"):
        load(ModelConfig(str(tmp_path), tokenizer=base))
