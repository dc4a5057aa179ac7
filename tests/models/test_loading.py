from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerFast

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import eval_mode
from rlhf_lightning.models.loading import (
    LoraOptions,
    ModelConfig,
    load_causal_lm,
    load_model_config,
    load_reward_model,
    load_tokenizer,
    resolve_path,
    stop_token_ids,
)
from tests.conftest import ARCHITECTURES

Folder = Callable[[str], str]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


@pytest.fixture
def scratch(tokenizer_folder: str) -> ModelConfig:
    return ModelConfig(config={"model_type": "llama", **ARCHITECTURES["llama"]}, tokenizer=tokenizer_folder)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folder_gives_its_own_weights_in_the_type_asked_for(tiny_model_folder: Folder, arch: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder(arch))
    assert same(load_causal_lm(ModelConfig(tiny_model_folder(arch))), plain)
    half = load_causal_lm(ModelConfig(tiny_model_folder(arch), dtype="bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert same(half, plain.bfloat16())


def test_dropout_is_off_in_config_and_modules(tokenizer_folder: str) -> None:
    config = {"model_type": "gpt2", **ARCHITECTURES["gpt2"], "resid_pdrop": 0.3, "attn_pdrop": 0.2}
    model = load_causal_lm(ModelConfig(config=config, tokenizer=tokenizer_folder))
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0.0
    dropouts = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.0}
    tokens = torch.arange(10)[None]
    assert torch.equal(model.train()(tokens).logits, model.eval()(tokens).logits)


def test_from_scratch_the_tokenizer_gives_vocabulary_and_special_tokens(
    scratch: ModelConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = load_model_config(scratch)
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    larger = load_model_config(dataclasses.replace(scratch, config={**(scratch.config or {}), "vocab_size": 320}))
    assert larger.vocab_size == 320


def test_a_seed_of_its_own_and_nobody_elses(scratch: ModelConfig) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load_causal_lm(scratch)
    adapted = load_causal_lm(dataclasses.replace(scratch, lora=LoraOptions(r=2)))
    assert torch.equal(torch.rand(3), expected), "the global random state was disturbed"
    assert same(first, load_causal_lm(scratch))
    assert same(adapted, load_causal_lm(dataclasses.replace(scratch, lora=LoraOptions(r=2))))
    assert not same(first, load_causal_lm(dataclasses.replace(scratch, seed=1)))


def test_a_new_reward_head_depends_on_the_seed_and_a_trained_one_is_kept(
    tiny_model_folder: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    head = load_reward_model(config).score.weight
    assert head.shape == (1, 32)
    assert torch.equal(head, load_reward_model(config).score.weight)
    assert not torch.equal(head, load_reward_model(dataclasses.replace(config, seed=3)).score.weight)
    load_reward_model(dataclasses.replace(config, seed=3)).save_pretrained(tmp_path)
    capfd.readouterr()
    kept = load_reward_model(ModelConfig(str(tmp_path)))
    assert torch.equal(kept.score.weight, load_reward_model(dataclasses.replace(config, seed=3)).score.weight)
    assert capfd.readouterr() == ("", "")


def test_gradient_checkpointing_takes_place_and_changes_no_gradient(tiny_model_folder: Folder) -> None:
    tokens = torch.arange(10)[None]
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = load_causal_lm(ModelConfig(tiny_model_folder("llama"), gradient_checkpointing=checkpointing))
        count: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        model(tokens, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        passes.append(len(count))
    assert passes == [1, 2]
    assert torch.allclose(*gradients, atol=1e-6)


NOISY: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 64, "num_local_experts": 4, "num_key_value_heads": 4, "router_jitter_noise": 0.9},
    "opt": {"layerdrop": 0.9, "word_embed_proj_dim": 32, "ffn_dim": 64},
}


@pytest.mark.parametrize("arch", NOISY)
@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"lora": LoraOptions(2, 4, 0.5, ["q_proj"])}])
def test_nothing_but_an_adapters_dropout_is_random_in_training(
    arch: str, options: dict[str, Any], tokenizer_folder: str
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    described = {"model_type": arch, **sizes, **NOISY[arch]}
    model = load_causal_lm(ModelConfig(config=described, tokenizer=tokenizer_folder, **options))
    tokens = torch.arange(20).view(2, 10)
    found = model(input_ids=tokens, use_cache=False).logits  # as it trains; an adapter begins as nothing
    with eval_mode(model):
        torch.testing.assert_close(found, model(input_ids=tokens, use_cache=False).logits, atol=1e-5, rtol=0)


def test_blocks_that_cannot_be_recomputed_are_named(tokenizer_folder: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_key_value_heads": 4}
    described = {"model_type": "jetmoe", "kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 2, **sizes}
    config = ModelConfig(config=described, tokenizer=tokenizer_folder, gradient_checkpointing=True)
    with pytest.raises(
        UserError, match=r"^JetMoe.* does not support activation.* Set gradient_checkpointing to false$"
    ):
        load_causal_lm(config)


def test_stop_tokens_come_from_tokenizer_model_generation_config_and_user(
    tiny_model_folder: Folder, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    model.config.eos_token_id, model.generation_config.eos_token_id = [2, 7], [2, 9]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), stop_tokens=["!"])
    found = stop_token_ids(load_tokenizer(config), load_model_config(config), config)
    assert found == [2, tokenizer.convert_tokens_to_ids("!"), 7, 9]
    with pytest.raises(UserError, match=r"stop token 'no such' is not one token"):
        stop_token_ids(tokenizer, model.config, dataclasses.replace(config, stop_tokens=["no such"]))


def test_a_tokenizer_of_another_model_is_refused(tiny_model_folder: Folder, tokenizer: PreTrainedTokenizerFast) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    small = load_model_config(config)
    small.vocab_size = 100
    with pytest.raises(UserError, match="has 290 tokens and the model has embeddings for 100"):
        stop_token_ids(tokenizer, small, config)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_tokenizer_is_the_one_that_was_saved(
    tiny_model_folder: Folder, tokenizer: PreTrainedTokenizerFast, arch: str
) -> None:
    found = load_tokenizer(ModelConfig(tiny_model_folder(arch)))
    assert found.get_vocab() == tokenizer.get_vocab()
    assert found("Hello  1234, sáy")["input_ids"] == tokenizer("Hello  1234, sáy")["input_ids"]


def test_pad_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    bare.save_pretrained(tmp_path)
    config = ModelConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="has no pad token; set pad_token, to its end-of-sequence token '<eos>'"):
        load_tokenizer(config)
    found = load_tokenizer(dataclasses.replace(config, pad_token="<eos>"))
    assert found.pad_token_id == found.eos_token_id == 2
    with pytest.raises(UserError, match="pad_token '<nil>' is not in the vocabulary"):
        load_tokenizer(dataclasses.replace(config, pad_token="<nil>"))


def test_a_tokenizer_without_a_stop_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>").save_pretrained(tmp_path)
    config = ModelConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="has no end-of-sequence token, so no response would end; set stop_tokens"):
        load_tokenizer(config)
    ended = dataclasses.replace(config, stop_tokens=["<eos>"])
    assert stop_token_ids(load_tokenizer(ended), load_model_config(ended), ended) == [2]


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ({"hidden_size": 32}, "no model_type"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "llama", "hiden_size": 32}, r"unknown key 'hiden_size' for llama; did you mean 'hidden_size'"),
        ({"model_type": "llama", "hidden_size": "big"}, "no valid llama config: .*hidden_size"),
        ({"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}, "no valid llama config: .*multiple"),
        (
            {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 4},
            "set num_key_value_heads, for example to 4",
        ),
    ],
)
def test_what_a_config_can_have_wrong(tokenizer_folder: str, description: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load_model_config(ModelConfig(config=description, tokenizer=tokenizer_folder))
    assert "\n" not in str(caught.value)


def test_old_names_of_keys_are_known(tokenizer_folder: str) -> None:
    description = {"model_type": "gpt2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert load_model_config(ModelConfig(config=description, tokenizer=tokenizer_folder)).n_embd == 32
    load_model_config(ModelConfig(config={"model_type": "llama", "rope_theta": 5.0}, tokenizer=tokenizer_folder))


def test_neither_or_both_of_name_and_config() -> None:
    with pytest.raises(UserError, match="neither is set"):
        ModelConfig()
    with pytest.raises(UserError, match="both are set"):
        ModelConfig("a/b", config={"model_type": "llama"}, tokenizer="t")
    with pytest.raises(UserError, match="set tokenizer to a folder or hub name"):
        ModelConfig(config={"model_type": "llama"})
    with pytest.raises(
        UserError, match="quantization is nf4, which freezes the base, and nothing else trains; set lora"
    ):
        ModelConfig("a/b", quantization="nf4")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "export").mkdir(parents=True)
    assert resolve_path("run/export") == "run/export"
    assert resolve_path("openai-community/gpt2") == "openai-community/gpt2"
    assert Path(resolve_path("playground/sft")).name == "sft"
    for missing in ("run/exprot", "./run/exprot", str(tmp_path / "run/exprot")):
        with pytest.raises(UserError, match="did you mean 'export'"):
            resolve_path(missing)
    with pytest.raises(UserError, match=r"run/a/b/c does not exist; .* is empty or missing"):
        resolve_path("run/a/b/c")
    with pytest.raises(UserError, match="did you mean 'playground/sft'"):
        resolve_path("playground/stf")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; set it to the folder"):
        resolve_path("./file")


def test_folders_that_hold_no_model(tiny_model_folder: Folder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama")).save_pretrained(run / "export")
    with pytest.raises(UserError, match=r"run holds no model; did you mean .*run/export\?"):
        load_model_config(ModelConfig(str(run)))
    (run / "export" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"export has no weights"):
        load_model_config(ModelConfig(str(run / "export")))
    torch.save({}, run / "export" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled .*only safetensors are read; convert them: python -c"):
        load_model_config(ModelConfig(str(run / "export")))
    (run / "export" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(UserError, match=r"the weights of .*export cannot be loaded") as caught:
        load_causal_lm(ModelConfig(str(run / "export")))
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(tiny_model_folder: Folder, tmp_path: Path) -> None:
    load_reward_model(ModelConfig(tiny_model_folder("llama"))).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("ForSequenceClassification", "ForCausalLM"))
    with pytest.raises(UserError, match=r"lack 1 tensors of LlamaForCausalLM, for example lm_head.weight"):
        load_causal_lm(ModelConfig(str(tmp_path)))


def test_a_classifier_with_more_outputs_is_no_reward_model(tiny_model_folder: Folder, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_model_folder("llama"), num_labels=3).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="a classifier with 3 outputs"):
        load_reward_model(ModelConfig(str(tmp_path)))


def test_a_model_that_sees_as_well_names_its_tokens_with_its_text(
    tokenizer: Any, tokenizer_folder: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **sizes,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "eos_token_id": 7,
        "pad_token_id": None,
    }
    found = Gemma3Config(text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14})
    AutoModelForCausalLM.from_config(found).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), tokenizer=tokenizer_folder)
    assert stop_token_ids(tokenizer, load_model_config(config), config) == [2, 7]
    assert load_reward_model(config).config.get_text_config().pad_token_id == 0


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "roberta"])
def test_an_encoder_which_reads_its_first_token_is_no_reward_model(kind: str, tokenizer_folder: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": kind, **sizes}
    with pytest.raises(
        UserError, match=r"is a \w+ForSequenceClassification, an encoder, whose classifier does not read"
    ):
        load_reward_model(ModelConfig(config=config, tokenizer=tokenizer_folder))


def test_chat_template(tiny_model_folder: Folder, tmp_path: Path) -> None:
    config = ModelConfig(tiny_model_folder("llama"))
    turn = [{"role": "user", "content": "Hi"}]
    assert load_tokenizer(config).apply_chat_template(turn, tokenize=False) == "user: Hi\n"
    named = load_tokenizer(dataclasses.replace(config, chat_template="dialogue"))
    assert named.apply_chat_template(turn, tokenize=False) == "\n\nHuman: Hi"
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}?")
    filed = load_tokenizer(dataclasses.replace(config, chat_template=str(tmp_path / "t.jinja")))
    assert filed.apply_chat_template(turn, tokenize=False) == "Hi?"
    with pytest.raises(UserError, match="did you mean 'chatml'"):
        load_tokenizer(dataclasses.replace(config, chat_template="chatm"))


def test_remote_code_is_announced(tiny_model_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(ModelConfig(tiny_model_folder("gpt2")))
    assert "remote" not in capsys.readouterr().out
    load_tokenizer(ModelConfig(tiny_model_folder("gpt2"), trust_remote_code=True))
    assert "trust_remote_code is true" in capsys.readouterr().out


def test_an_architecture_without_the_head_that_is_wanted_is_named_alone(tokenizer_folder: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    granite, t5 = [
        ModelConfig(config={"model_type": kind, **given}, tokenizer=tokenizer_folder)
        for kind, given in (("granite", {**sizes, "num_key_value_heads": 2}), ("t5", {"d_model": 32}))
    ]
    with pytest.raises(UserError, match=r"no sequence classifier.* of the architecture granite; set name_or_path"):
        load_reward_model(granite)
    with pytest.raises(UserError, match="no language model of the architecture t5; set name_or_path to another model"):
        load_causal_lm(t5)


@pytest.mark.parametrize(
    ("kind", "sizes", "attention"),
    [
        ("llama", {"num_attention_heads": 2}, "sdpa"),
        ("gemma2", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}, "eager"),
        ("bloom", {"n_head": 2}, "eager"),
    ],
)
def test_attention_is_sdpa_where_the_architecture_has_it(
    kind: str, sizes: dict[str, Any], attention: str, tokenizer_folder: str, tmp_path: Path
) -> None:
    config = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 1, **sizes}
    model = load_causal_lm(ModelConfig(config=config, tokenizer=tokenizer_folder))
    model.save_pretrained(tmp_path)
    for loaded in (model, load_causal_lm(ModelConfig(str(tmp_path), tokenizer=tokenizer_folder))):
        assert loaded.config._attn_implementation == attention


def test_a_pickled_adapter_is_refused(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": tiny_model_folder("llama"), "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"the adapter in .+ is pickled \(adapter_model.bin\), which can execute code"):
        load_model_config(ModelConfig(name_or_path=str(tmp_path)))
