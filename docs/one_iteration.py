"""One iteration of PPO on the playground, from prompts to the last optimizer step, without Lightning.

It prints the metrics that `fit --config ppo.yaml` logs for its first iteration.
"""

from dataclasses import fields

import torch
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.ppo import PPO, KLPenalty
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_mean
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.backbone import eval_mode
from rlhf_lightning.models.critics import SharedCritic
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_tokenizer, stop_token_ids
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import build_reference
from rlhf_lightning.playground import task
from rlhf_lightning.rewards import ModelReward, score
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.seeding import Randomness, derive_seed
from rlhf_lightning.training.metrics import MetricAccumulator
from rlhf_lightning.types import Rollout, Rows


def one_iteration(prompts: int = 2048, batch_size: int = 128, seed: int = 0) -> tuple[Policy, dict[str, float]]:
    # 1. Models: a policy with a value head, a frozen 4-bit copy of it as the reference, and a reward model.
    config, cpu = ModelConfig("playground/sft"), torch.device("cpu")
    model, tokenizer = load_causal_lm(config), load_tokenizer(config)
    policy = Policy(model, SharedCritic(model.config.hidden_size))
    reference = build_reference("nf4", config, model, cpu)
    reward = ModelReward("playground/reward")
    reward.load(cpu)
    algorithm = PPO(epochs=2, kl=KLPenalty(coef=0.1))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, weight_decay=0.0, fused=True)
    # 2. Prompts, in an order that depends on the seed alone.
    rows = [{"prompt": prompt} for prompt in task.prompts(prompts, seed=0, held_out=False)]
    rows = RowSource(DataLoader(rows, batch_size, shuffle=True, drop_last=True, collate_fn=list), seed).next()
    with eval_mode(policy), torch.no_grad():
        # 3. Responses of the policy; the sampler records log-probabilities and values while it generates.
        encoder = Encoder(tokenizer, stop_token_ids(tokenizer, model.config, config))
        responses = ResponseGenerator(policy, Sampler(max_new_tokens=24), encoder)
        randomness = Randomness(seed, 0, tuple(range(len(rows))))
        completions = responses.generate(rows, algorithm.responses_per_prompt, randomness)
        # 4. Scores of the responses, and log-probabilities of their tokens under the reference.
        rewards = score(reward, completions)
        tokens, masks = completions.tokens, (completions.prompt_mask, completions.mask)
        rollout = Rollout(
            **{item.name: getattr(completions, item.name) for item in fields(Rows)},
            logprobs=completions.logprobs,
            values=completions.values,
            rewards=rewards,
            reference_logprobs=reference.logprobs(tokens, *masks, temperature=1.0),
        )
        kl = masked_mean(kl_estimate(rollout.logprobs, rollout.reference_logprobs), rollout.mask)
        measured = {"reward/mean": float(masked_mean(rewards, rollout.mask.any(-1))), "kl/reference": float(kl)}
        # 5. Token rewards with the KL penalty, advantages and returns by GAE.
        batch = algorithm.prepare(rollout)
    # 6. Epochs × minibatches optimizer steps, each epoch in another random order.
    steps = {"rows_per_loss_group": 1, "epochs": algorithm.epochs, "minibatches": algorithm.minibatches}
    metrics = MetricAccumulator()
    for minibatch in RolloutBuffer(batch, algorithm.weight, **steps, accumulate=1, seed=derive_seed(seed, 0)):
        loss = algorithm.loss(policy(minibatch), minibatch)
        optimizer.zero_grad()
        (loss.loss / minibatch.weight).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        metrics.add(loss)
    return policy, {**measured, **metrics.read()}


if __name__ == "__main__":
    for name, value in one_iteration()[1].items():
        print(f"{name:24}{value:.6f}")
