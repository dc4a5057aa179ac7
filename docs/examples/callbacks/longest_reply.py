"""An evaluation: the length of the longest response to the held-out prompts, logged as `val/longest_reply`."""

from rlhf_lightning import Evaluation


class LongestReply(Evaluation):
    def evaluate(self, results, ask):
        return {"longest_reply": max(len(sample["response"]) for sample in results.samples)}
