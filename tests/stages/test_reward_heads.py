"""An ensemble of reward heads: bootstrap samples, one export with their mean, and one head as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import load_file
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.ensembles import bootstrap_weights
from rlhf_lightning.models.config import LoraOptions
from rlhf_lightning.models.loading import ModelConfig, load_reward_model
from rlhf_lightning.models.reward_heads import HEADS_FILE, add_heads, averaged_heads, head_weights, saved_heads
from rlhf_lightning.models.reward_model import score_heads, score_rows
from rlhf_lightning.playground import PlaygroundPreferences
from rlhf_lightning.stages import RewardStage
from rlhf_lightning.training.bootstrap import mean_over_heads


def trained(folder: Path, heads: int, name: str = "playground/reward", **options: object) -> RewardStage:
    seed_everything(0, verbose=False)
    stage = RewardStage(ModelConfig(name), heads=heads, **options)  # type: ignore[arg-type]
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(stage, datamodule=PlaygroundPreferences(size=32, validation_size=16, batch_size=8))
    assert ("val/reward/disagreement" in trainer.callback_metrics) == (heads > 1)
    stage.export(folder / "export")
    return stage


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_the_export_scores_by_the_mean_of_its_heads_and_keeps_them(tmp_path: Path, lora: LoraOptions | None) -> None:
    seed_everything(0, verbose=False)
    model = load_reward_model(ModelConfig("playground/reward", lora=lora))
    add_heads(model, 5, 0)
    before = head_weights(model).clone()
    with averaged_heads(model, None) as (state, files):
        assert state is None
        assert torch.equal(files[HEADS_FILE]["weight"], before)
        assert head_weights(model).shape[0] == 1
        assert torch.allclose(head_weights(model), before.mean(0, keepdim=True))
    assert torch.equal(head_weights(model), before)


def test_a_trained_ensemble_is_exported_and_continued(tmp_path: Path) -> None:
    stage = trained(tmp_path, 4, freeze_backbone=True)
    heads = head_weights(stage.model)
    assert heads.std(0).max() > 0
    config = ModelConfig(str(tmp_path / "export"))
    saved = saved_heads(config)
    assert saved is not None
    assert torch.equal(saved, heads)
    rows = stage.encode(PlaygroundPreferences(size=4).rows("train") or []).to("cpu")
    plain = load_reward_model(config)
    with torch.no_grad():
        each = score_heads(stage.model, rows)
        assert torch.allclose(score_rows(plain, rows), each.mean(-1), atol=1e-5)
    original = load_reward_model(ModelConfig("playground/reward"))
    frozen = dict(stage.model.named_parameters())
    assert all(torch.equal(x, frozen[n]) for n, x in original.named_parameters() if not n.startswith("score"))
    add_heads(plain, 4, 1, saved)
    assert torch.equal(head_weights(plain), heads)  # a later run continues every head


def test_new_heads_are_centred_on_the_old_one() -> None:
    model = load_reward_model(ModelConfig("playground/reward"))
    old = head_weights(model).clone()
    add_heads(model, 6, 3)
    new = head_weights(model)
    assert torch.allclose(new.mean(0, keepdim=True), old, atol=1e-6)
    assert len({tuple(row.tolist()) for row in new}) == 6


def test_a_row_keeps_its_bootstrap_weights_in_any_batch(tmp_path: Path) -> None:
    stage = trained(tmp_path, 3)
    rows = PlaygroundPreferences(size=6).rows("train") or []
    whole = stage.encode(rows).bootstrap
    assert whole is not None
    turned = stage.encode(rows[::-1]).bootstrap
    assert turned is not None
    assert torch.equal(whole.view(6, 2, 3), turned.view(6, 2, 3).flip(0))
    assert torch.equal(whole[::2], whole[1::2])  # both responses of a pair
    assert len({tuple(row.tolist()) for row in whole}) > 1


def test_bootstrap_weights_are_those_of_sampling_with_replacement() -> None:
    weights = torch.stack([bootstrap_weights(seed, 10) for seed in range(2000)])
    assert float(weights.mean()) == pytest.approx(1, abs=0.03)
    assert float(weights.var()) == pytest.approx(1, abs=0.05)
    assert float((weights == 0).float().mean()) == pytest.approx(0.3679, abs=0.02)


def test_each_head_learns_from_its_own_sample() -> None:
    scores = torch.tensor([[1.0, 10.0], [2.0, 20.0]], requires_grad=True)
    weights = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    seen: list[Tensor] = []

    def losses(head: Tensor, rows: Tensor | None) -> Tensor:
        assert rows is not None
        seen.append(rows)
        return head * rows

    found = mean_over_heads(losses, scores, weights)
    assert found.tolist() == [1.5, 10.0]
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1.5, 0.0], [0.0, 0.5]]


def test_one_head_is_what_it_was(tmp_path: Path) -> None:
    """No new tensor, no file of heads; `tests/stages/test_one_step.py` holds the numbers."""
    stage = trained(tmp_path, 1)
    rows = PlaygroundPreferences(size=2).rows("train") or []
    assert stage.encode(rows).bootstrap is None
    assert not (tmp_path / "export" / HEADS_FILE).exists()
    saved = load_file(tmp_path / "export" / "model.safetensors")["score.weight"]
    assert torch.equal(saved, head_weights(stage.model))


def test_no_head_is_refused() -> None:
    with pytest.raises(UserError, match="heads is 0"):
        RewardStage(ModelConfig("playground/sft"), heads=0)
