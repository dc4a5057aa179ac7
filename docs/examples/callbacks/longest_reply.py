"""A callback: Lightning's own, with the stage's `validation_samples` at hand."""

from lightning.pytorch import Callback


class LongestReply(Callback):
    def on_validation_end(self, trainer, stage):
        replies = [sample["response"] for sample in stage.validation_samples]
        print("longest reply:", max(replies, key=len))
