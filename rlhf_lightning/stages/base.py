"""What the stages share: tokenizer, loaders that resume, losses divided by the step, optimizers, metrics."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import all_max, all_sum, masked_mean
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_model_config, load_tokenizer, stop_token_ids
from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rollouts.loader import HeldOut, RawRows, rows_of
from rlhf_lightning.types import Completions, LossOutput


def adamw(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a stage that is given none."""
    return torch.optim.AdamW(params, lr=1e-5)


class Meter:
    """Adds up sums, counts and maxima until they are read, over all ranks at once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, loss: LossOutput) -> None:
        """Take in what one part of a minibatch measured."""
        for name, (total, count) in loss.means.items():
            pair = torch.stack([total.double(), count.double()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        for name, value in loss.maxima.items():
            self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def read(self) -> dict[str, float]:
        """Means and maxima since the last reading; every rank must ask."""
        values: dict[str, float] = {}
        if self.sums:
            pairs = all_sum(torch.stack(list(self.sums.values())))
            values |= dict(zip(self.sums, (pairs[:, 0] / pairs[:, 1].clamp(min=1)).tolist(), strict=True))
        if self.maxima:
            values |= dict(zip(self.maxima, all_max(torch.stack(list(self.maxima.values()))).tolist(), strict=True))
        self.sums, self.maxima = {}, {}
        return values

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was added since the last reading."""
        return {"sums": dict(self.sums), "maxima": dict(self.maxima)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore it."""
        self.sums, self.maxima = dict(state["sums"]), dict(state["maxima"])


class Stage(LightningModule):
    """A LightningModule on a language model: cheap to construct, checked in `setup`, loaded in `configure_model`."""

    def __init__(
        self, config: ModelConfig, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        self.config, self.make_optimizer, self.make_lr_scheduler = config, optimizer, lr_scheduler
        self.validation_samples: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.meter = Meter()
        self.held_out: dict[str, list[float]] = {}
        self.encoder: Encoder | None = None
        self.loader_state: dict[str, Any] | None = None
        self.started = time.perf_counter()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; there from `setup` on."""
        return self.coder.tokenizer

    @property
    def coder(self) -> Encoder:
        """The encoder; there from `setup` on."""
        assert self.encoder is not None
        return self.encoder

    def load_encoder(self, max_prompt_length: int | None = None) -> Encoder:
        """Tokenizer, stop tokens and context of the model, without its weights."""
        tokenizer, model_config = load_tokenizer(self.config), load_model_config(self.config)
        stops = stop_token_ids(tokenizer, model_config, self.config)
        context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
        return Encoder(tokenizer, stops, context, max_prompt_length)

    def wrap_loaders(self, train: Callable[[Iterable[Any]], Any]) -> None:
        """Have the data module give Lightning `train(its train loader)`, and held-out rows by rank.

        Raises:
            UserError: there is no data module.
        """
        data: LightningDataModule | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError(
                f"{type(self).__name__} takes its rows from a data module, and there is none: give `data:` in the config"
            )
        for name, wrap in {
            "train_dataloader": lambda loader: self._restored(train(loader)),
            "val_dataloader": HeldOut,
            "test_dataloader": HeldOut,
            "predict_dataloader": HeldOut,
        }.items():
            original = getattr(getattr(data, name), "original", getattr(data, name))
            setattr(data, name, _wrapped(original, wrap))

    def _restored(self, loader: Any) -> Any:
        """Continue where the checkpoint says, also at the end of an epoch, where Lightning 2.6 drops a loader's state."""
        if self.loader_state is not None:
            loader.load_state_dict(self.loader_state)
            self.loader_state = None
        return loader

    def rows_to_check(self) -> list[tuple[str, Any]]:
        """The data module's rows, where it shows them, with a name for messages."""
        data = getattr(self.trainer, "datamodule", None)
        named = [("train", getattr(data, "train_rows", None)), ("validation", getattr(data, "validation_rows", None))]
        return [(f"{name} data", rows) for name, rows in named if rows is not None]

    def all_rows(self, size: int = 16) -> Iterator[RawRows]:
        """Every row of training and validation once, `size` at a time; from the loaders of a data module that hides its rows."""
        shown = self.rows_to_check()
        for _, rows in shown:
            yield from (
                [rows[i] for i in range(start, min(start + size, len(rows)))] for start in range(0, len(rows), size)
            )
        for name in () if shown else ("train_dataloader", "val_dataloader"):
            loader = getattr(self.trainer.datamodule, name).original()  # type: ignore[attr-defined]
            yield from (rows_of(batch) for batch in loader or ())

    @property
    def accumulate(self) -> int:
        """Parts of an optimiser step."""
        return int(self.trainer.accumulate_grad_batches)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Eval mode, no gradient, the precision of training; the mode is put back."""
        training = self.training
        self.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            yield
        self.train(training)

    def divided(self, loss: LossOutput, weight: Tensor) -> Tensor:
        """The part's share of the step's loss: Lightning divides by the accumulation and averages over ranks, so undo both."""
        self.meter.add(loss)
        return loss.loss.float() * (self.accumulate * self.trainer.world_size) / weight

    def report(self, values: dict[str, float], shown: Iterable[str] = ()) -> None:
        """Log numbers that are of all ranks already, once; `shown` ones stand on the progress bar.

        Lightning would write them again with every step until they change, so the loggers are told directly.
        """
        self.tell_loggers(values)
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, logger=False, on_step=True, on_epoch=False, batch_size=1)

    def tell_loggers(self, values: dict[str, float]) -> None:
        """Log numbers without showing them; also where Lightning's own `log` is not allowed."""
        for logger in self.loggers if values else []:
            logger.log_metrics(values, step=self.global_step)

    def report_step(self, shown: Iterable[str]) -> None:
        """Log what the meter gathered since the last time, every `log_every_n_steps` optimiser steps."""
        self.report(self._step_metrics(), shown)

    def _step_metrics(self) -> dict[str, float]:
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return {}
        return {**self.meter.read(), "memory/peak": peak_memory()}

    def measure(self, name: str, values: Iterable[float | None]) -> None:
        """Keep one number for each held-out row (None: not known); their mean is logged when validation ends."""
        self.held_out.setdefault(name, []).extend(float("nan") if x is None else float(x) for x in values)

    def check_rewards(self, rewards: dict[str, Reward]) -> None:
        """Find what is wrong with rewards before weights are loaded, and note the best there can be."""
        for name, reward in rewards.items():
            reward.check()
            if reward.best is not None:
                self.best[f"val/reward/{name}"] = reward.best

    def load_rewards(self, rewards: dict[str, Reward]) -> None:
        """Load what is heavy, onto this rank's device."""
        for reward in rewards.values():
            reward.load(self.device)

    def measure_completions(self, completions: Completions, rewards: dict[str, Reward]) -> None:
        """Keep scores, their parts, lengths and the texts themselves; a reward called `mean` is the one that trains."""
        texts = zip(completions.prompts, completions.responses, strict=True)
        samples: list[dict[str, Any]] = [{"prompt": prompt, "response": response} for prompt, response in texts]
        for name, reward in rewards.items():
            scores = score(reward, completions).tolist()
            self.measure(f"reward/{name}", scores)
            for sample, value in zip(samples, scores, strict=True):
                sample["reward" if name == "mean" else f"reward/{name}"] = value
            for part, values in reward.parts().items():
                self.measure(f"reward/{part}" if name == "mean" else f"reward/{name}/{part}", values)
        self.measure("response/length", completions.mask.sum(-1).tolist())
        self.measure("response/truncated", completions.truncated.tolist())
        self.validation_samples += samples

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier validation measured."""
        self.held_out, self.validation_samples = {}, []

    def on_validation_epoch_end(self) -> None:
        """Log the mean of every held-out number, over all ranks, also of the validation before the first step."""
        values = {name: self.mean(numbers) for name, numbers in self.held_out.items()} | self.held_out_metrics()
        prefix = "test" if self.trainer.testing else "val"
        for logger in self.loggers:
            logger.log_metrics({f"{prefix}/{name}": value for name, value in values.items()}, step=self.global_step)
        for name, value in values.items():
            shown = name in ("reward/mean", "reward/true", "preference/accuracy")
            self.log(f"{prefix}/{name}", value, prog_bar=shown, logger=False, batch_size=1)

    def held_out_metrics(self) -> dict[str, float]:
        """What a stage measures besides means of numbers, over all ranks."""
        return {}

    def mean(self, numbers: list[float]) -> float:
        """Mean over all ranks of the numbers that are known."""
        known = torch.tensor(numbers, device=self.device)
        return float(masked_mean(known, ~known.isnan()))

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient before it is clipped."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            one = torch.ones((), device=norm.device)
            self.meter.add(
                LossOutput(
                    one, {"optimizer/grad_norm": (norm / self.trainer.world_size, one / self.trainer.world_size)}
                )
            )

    def configure_optimizers(self) -> Any:
        """The optimizer of the weights that train; the scheduler steps with it."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_lr_scheduler(optimizer), "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Log a step that was taken when the checkpoint was written: its row comes after the checkpoint."""
        if "optimizer/grad_norm" in self.meter.sums:
            self.tell_loggers(self._step_metrics())

    def on_train_end(self) -> None:
        """Say how many texts were cut."""
        for what, count in self.coder.cut.items():
            say(f"cut to fit: {count} {what}, counted each time they were read")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was measured; leave out what an adapter run does not train, which comes from where it came from before."""
        checkpoint["meter"] = self.meter.state_dict()
        if not self.strict_loading:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was measured."""
        self.meter.load_state_dict(checkpoint["meter"])
        loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or [None]
        self.loader_state = loaders[0]

    @property  # type: ignore[misc]
    def strict_loading(self) -> bool:
        """A checkpoint of an adapter run holds the adapter alone."""
        return not any(is_adapted(module) for module in self.children() for module in module.modules())

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face form; called on every rank."""
        raise NotImplementedError


def _wrapped(original: Callable[[], Any], wrap: Callable[[Any], Any]) -> Callable[[], Any]:
    def load() -> Any:
        loader = original()
        return loader if loader is None or loader == [] else wrap(loader)

    load.original = original  # type: ignore[attr-defined]
    return load


@rank_zero_only
def say(line: str) -> None:
    """Print a line, once whatever the number of ranks."""
    print(line, flush=True)


def peak_memory() -> float:
    """GiB that this process (on CUDA: its tensors) had at most."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
