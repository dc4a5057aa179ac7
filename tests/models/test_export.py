from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlhf_lightning.models.critics import SharedCritic, save_critic
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_tokenizer
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.policy import Policy
from tests.conftest import ARCHITECTURES
from tests.guarded import python_path

Folder = Callable[[str], str]

PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
out = {}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("please say hello", return_tensors="pt")
    ended = GenerationConfig.from_pretrained(folder)
    out[folder] = model.generate(**inputs, generation_config=ended, max_new_tokens=8, do_sample=False)[0].tolist()
assert not any(name.split(".")[0] == "rlhf_lightning" for name in sys.modules)
print(json.dumps(out))
"""


def learned(config: ModelConfig) -> nn.Module:
    model = load_causal_lm(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def test_plain_transformers_and_peft_generate_the_same_tokens(tiny_model_folder: Folder, tmp_path: Path) -> None:
    expected = {}
    for arch in ARCHITECTURES:
        for lora in (None, LoraOptions(r=4)):
            config = ModelConfig(tiny_model_folder(arch), lora=lora)
            model, tokenizer = learned(config), load_tokenizer(config)
            folder = tmp_path / f"{arch}-{'lora' if lora else 'full'}"
            export_model(model, tokenizer, folder, [2, 40])
            inputs = tokenizer("please say hello", return_tensors="pt", return_token_type_ids=False)
            ends = {"eos_token_id": [2, 40], "pad_token_id": 0}
            expected[str(folder)] = model.generate(**inputs, max_new_tokens=8, do_sample=False, **ends)[0].tolist()
    command = [sys.executable, "-c", PLAIN, *expected]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": python_path()}
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_an_adapter_on_a_base_from_a_config_takes_its_base_along(
    tokenizer_folder: str, tmp_path: Path, arch: str, quantization: str | None
) -> None:
    config = ModelConfig(
        config={"model_type": arch, **ARCHITECTURES[arch]},
        tokenizer=tokenizer_folder,
        lora=LoraOptions(r=4),
        quantization=quantization,  # type: ignore[arg-type]
    )
    model = learned(config)
    tokens, prompt_mask, mask = torch.arange(5, 15)[None], torch.ones(1, 4).bool(), torch.ones(1, 6).bool()
    before = response_logprobs(model, tokens, prompt_mask, mask)
    export_model(model, load_tokenizer(config), tmp_path / "export", [2])
    assert torch.equal(response_logprobs(model, tokens, prompt_mask, mask), before), "exporting changed the model"
    assert not (tmp_path / "export" / "README.md").exists(), "peft's card has nothing filled in"
    shutil.move(tmp_path / "export", tmp_path / "moved")
    again = load_causal_lm(ModelConfig(str(tmp_path / "moved")))
    assert torch.allclose(response_logprobs(again, tokens, prompt_mask, mask), before, atol=1e-5)


def test_files_of_an_export(tiny_model_folder: Folder, tmp_path: Path) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    model, tokenizer = load_causal_lm(config), load_tokenizer(config)
    model.generation_config.repetition_penalty = 1.3
    export_model(model, tokenizer, tmp_path / "runs" / "export", [2, 40])
    names = {path.name for path in (tmp_path / "runs" / "export").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    generation = json.loads((tmp_path / "runs" / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 40]
    assert generation["pad_token_id"] == 0
    assert "repetition_penalty" not in generation
    assert load_tokenizer(ModelConfig(str(tmp_path / "runs" / "export"))).chat_template == tokenizer.chat_template


def test_all_files_follow_the_umask(tokenizer_folder: str, tmp_path: Path) -> None:
    made = {"model_type": "llama", **ARCHITECTURES["llama"]}
    config = ModelConfig(config=made, tokenizer=tokenizer_folder, lora=LoraOptions(r=2))  # whose base goes along
    before = os.umask(0o027)
    try:
        model = load_causal_lm(config)
        export_model(model, load_tokenizer(config), tmp_path / "export", [2])
        save_critic(Policy(model, SharedCritic(32)), None, tmp_path / "export" / "critic.safetensors")
    finally:
        assert os.umask(before) == 0o027
    found = [tmp_path / "export", *(tmp_path / "export").rglob("*")]
    assert {"critic.safetensors", "adapter_model.safetensors", "model.safetensors"} <= {path.name for path in found}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in found} == {
        path.name: "0o750" if path.is_dir() else "0o640" for path in found
    }


def test_an_export_that_fails_leaves_the_old_one(
    tiny_model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    model, tokenizer = load_causal_lm(config), load_tokenizer(config)
    folder = tmp_path / "export"
    export_model(model, tokenizer, folder, [2])
    old = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full_disk)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(OSError, match="no space left"):
        export_model(model, tokenizer, folder, [2])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    monkeypatch.undo()
    export_model(model, tokenizer, folder, [2])
    assert (folder / "model.safetensors").read_bytes() != old["model.safetensors"]


@pytest.mark.parametrize("gathered", [False, True])
def test_tied_weights_are_saved_once(gathered: bool, tiny_model_folder: Folder, tmp_path: Path) -> None:
    config = ModelConfig(tiny_model_folder("gpt2"))
    model = learned(config)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}  # as those that were cut over ranks
    export_model(model, load_tokenizer(config), tmp_path / "export", [2], state if gathered else None)
    generated = load_file(tmp_path / "export" / "model.safetensors")
    assert set(state) - set(generated) == {"lm_head.weight"}
    again = load_causal_lm(ModelConfig(str(tmp_path / "export")))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert all(torch.equal(weight, state[name]) for name, weight in again.state_dict().items())
