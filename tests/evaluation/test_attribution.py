"""Integrated gradients against captum, and texts of single tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.evaluation.attribution import integrated_gradients
from rlhf_lightning.evaluation.token_tables import token_texts


@pytest.fixture(params=["llama", "gpt2"])
def classifier(request: pytest.FixtureRequest, tiny_model_folder: Callable[..., str]) -> Any:
    torch.manual_seed(0)
    folder = tiny_model_folder(request.param)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0).eval()


IDS = torch.tensor([5, 9, 40, 7, 33, 12, 2])
START = 3


def test_they_are_those_of_captum_and_sum_to_the_difference(classifier: Any) -> None:
    captum = pytest.importorskip("captum.attr")
    found = integrated_gradients(classifier, IDS, START, steps=200)
    embed = classifier.get_input_embeddings()
    full = embed(IDS).detach()
    base = torch.cat([full[:START], embed.weight.detach().mean(0).expand(len(IDS) - START, -1)])

    def score(x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[:2], dtype=torch.long)
        return classifier(inputs_embeds=x, attention_mask=mask).logits[:, 0]

    method = captum.IntegratedGradients(score)
    expected = method.attribute(full[None], base[None], n_steps=200, method="riemann_middle").sum(-1)[0]
    assert expected[:START].abs().max() == 0
    assert torch.allclose(found, expected[START:].float(), atol=1e-5)
    with torch.no_grad():
        difference = score(full[None]) - score(base[None])
    assert float(found.sum()) == pytest.approx(float(difference), abs=1e-3)
    assert float(found.abs().max()) > 0.01


def test_they_are_the_same_of_a_model_made_in_inference_mode(classifier: Any) -> None:
    expected = integrated_gradients(classifier, IDS, START, steps=8)
    with torch.inference_mode():
        state = {name: value.clone() for name, value in classifier.state_dict().items()}
        classifier.load_state_dict(state, assign=True)
        assert next(classifier.parameters()).is_inference()
        assert torch.allclose(integrated_gradients(classifier, IDS, START, steps=8), expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_texts_of_tokens_join_to_the_text_of_all(tokenizer: Any) -> None:
    ids = [*tokenizer("say: 你好 – hello, little dog", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert [text["special"] for text in texts] == [False] * (len(ids) - 1) + [True]
    assert "".join(text["token"] for text in texts[:-1]) == "say: 你好 – hello, little dog"
    assert "" in [text["token"] for text in texts]  # the first bytes of a character
