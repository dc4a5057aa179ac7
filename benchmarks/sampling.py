"""Tokens per second of the sampler against transformers' own `generate`, where responses are of uneven lengths.

usage: python benchmarks/sampling.py [--repeats 3] [--threads 2] [--slots 32 64 128 256]
       python benchmarks/sampling.py --device cuda --dtype bfloat16 --model 0.5b

64 prompts of 64 tokens, 4 responses each, on a Llama of 13.8 M parameters in float32. Lengths are geometric with mean 64 and cap
256, drawn once and forced on both sides by the same change of the logits: the stop token can come at a row's length only, and
must. Every measurement is a process of its own; the sides take turns, so that a machine that slows down slows both.

`of the bandwidth`: the weights once for each token of the longest response, over the time, against a copy of 256 MiB there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROMPTS, COPIES, PROMPT_LENGTH, MEAN, CAP, STOP = 64, 4, 64, 64, 256, 2
MODELS = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
"""13.8 M parameters; 494 M, the sizes of Qwen2 0.5B."""


def measure(
    side: str, slots: int, threads: int, size: str = "small", device: str = "cpu", dtype: str = "float32"
) -> dict:
    """Time one side in this process: `sampler`, `static` (its path for other caches) or `generate`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

    from rlhf_lightning.generation import decoding_state, local, transformers
    from rlhf_lightning.seeding import Randomness
    from rlhf_lightning.types import GenerationRequest

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    more = {"max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": STOP}
    config = LlamaConfig(**MODELS[size], **more)
    model = LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval()
    lengths = torch.empty(PROMPTS * COPIES).geometric_(1 / MEAN, generator=torch.Generator().manual_seed(0)).long()
    lengths = lengths.clamp(max=CAP).to(device)
    prompts = torch.randint(3, config.vocab_size, (PROMPTS, PROMPT_LENGTH), generator=torch.Generator().manual_seed(1))
    prompts = prompts.to(device)
    seconds: dict[str, float] = defaultdict(float)

    def schedule(logits, rows, steps):
        last = steps + 1 == lengths[rows]
        logits[:, STOP] = -torch.inf
        logits[last] = -torch.inf
        logits[last, STOP] = 0.0
        return logits

    class Scheduled(decoding_state.DecodingState):
        def extend(self, rows, hidden, logits):
            return super().extend(rows, hidden, schedule(logits, rows, self.generated[rows]))

    def now():
        torch.cuda.synchronize() if device == "cuda" else None
        return time.perf_counter()

    def timed(owner, name, phase):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            begun = time.perf_counter()  # of the host: to wait for a GPU here would slow it down
            result = function(*args, **kwargs)
            seconds[phase(kwargs)] += time.perf_counter() - begun
            return result

        setattr(owner, name, wrapper)

    options = {"max_batch_size": slots or PROMPTS * COPIES, "continuous_batching": side == "sampler"}
    if side == "generate":
        sampler = transformers.TransformersGenerate(CAP)
        everyone = torch.arange(PROMPTS * COPIES, device=device)
        processor = LogitsProcessorList([lambda ids, logits: schedule(logits, everyone, ids.shape[1] - PROMPT_LENGTH)])
        model.generate = partial(model.generate, logits_processor=processor)
    else:
        sampler = local.Sampler(CAP, **options)
        local.DecodingState = Scheduled
        timed(Scheduled, "extend", lambda _: "sample")
        timed(model.model, "forward", lambda given: "prefill" if given["input_ids"].shape[1] > 1 else "decode")
        timed(model.lm_head, "forward", lambda _: "head")

    def write(count):
        mask = torch.ones(count, PROMPT_LENGTH, dtype=torch.bool, device=device)
        params = sampler.sampling_params([STOP], 0, COPIES)
        return sampler.generate(
            GenerationRequest(prompts[:count], mask, params, Randomness(2, 0, tuple(range(count * COPIES))), model)
        )

    everything = lengths
    lengths = torch.full_like(everything, 3)
    if side == "generate":
        everyone = torch.arange(COPIES, device=device)
    write(1)  # warm-up
    lengths = everything
    if side == "generate":
        everyone = torch.arange(PROMPTS * COPIES, device=device)
    seconds.clear()
    on_gpu = device == "cuda"
    held = torch.cuda.memory_allocated() / 2**20 if on_gpu else peak_of_process()
    torch.cuda.reset_peak_memory_stats() if on_gpu else None
    before, begun = time.process_time(), now()
    generated = write(PROMPTS)
    wall, cpu = now() - begun, time.process_time() - before
    most = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_of_process()
    assert torch.equal(generated.mask.sum(-1), lengths), "lengths were not forced"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "side": side,
        "slots": slots,
        "tokens": int(lengths.sum()),
        "seconds": wall,
        "cpu": cpu,
        "MiB": most - held,
        "bandwidth": weights * int(lengths.max()) / wall / copy_rate(device),
        "phases": {**seconds, "rest": wall - sum(seconds.values())} if seconds else {},
    }


def peak_of_process() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copy_rate(device: str) -> float:
    """Bytes a second, read and written."""
    import torch

    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        float(target.copy_(source)[-1])  # waits for it
        best = min(best, time.perf_counter() - begun)
    return 2 * 4 * len(source) / best


def in_own_process(side: str, slots: int, given: list[str]) -> dict:
    """`measure` in a new interpreter."""
    command = [sys.executable, __file__, *given, "--measure", side, "--slots", str(slots)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, nargs="+", default=[256], help="max_batch_size of the sampler")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--measure", choices=["sampler", "static", "generate"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        where = (options.model, options.device, options.dtype)
        print(json.dumps(measure(options.measure, options.slots[0], options.threads, *where)))
        return
    sides = [("generate", 0), ("static", 0), *(("sampler", slots) for slots in options.slots)]
    results = defaultdict(list)
    for _ in range(options.repeats):
        for side in sides:
            results[side].append(in_own_process(*side, sys.argv[1:]))
            print(json.dumps(results[side][-1]), file=sys.stderr, flush=True)
    base = statistics.median(one["seconds"] for one in results["generate", 0])
    base_cpu = statistics.median(one["cpu"] for one in results["generate", 0])
    print(f"{results['generate', 0][0]['tokens']:,} tokens, {options.threads} threads, median of {options.repeats}\n")
    print(
        "| | tokens/s | × generate | × in CPU seconds | of the bandwidth | MiB above the model | where the time goes |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for (side, slots), runs in results.items():
        middle = sorted(runs, key=lambda one: one["seconds"])[len(runs) // 2]
        cpu = statistics.median(one["cpu"] for one in runs)
        share = ", ".join(f"{name} {part / middle['seconds']:.0%}" for name, part in middle["phases"].items())
        name = f"{side}, {slots} rows at a time" if slots else side
        print(
            f"| {name} | {middle['tokens'] / middle['seconds']:,.0f} | {base / middle['seconds']:.2f} | {base_cpu / cpu:.2f} "
            f"| {middle['bandwidth']:.0%} | {middle['MiB']:,.0f} | {share} |"
        )


if __name__ == "__main__":
    main()
