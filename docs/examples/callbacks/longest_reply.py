"""A callback: logs the length of the longest reply to a held-out prompt."""

from lightning.pytorch import Callback


class LongestReply(Callback):
    def on_validation_end(self, trainer, stage):
        longest = max(len(sample["response"].split()) for sample in stage.validation_samples)
        for logger in trainer.loggers:
            logger.log_metrics({"val/response/longest": float(longest)}, step=trainer.global_step)
