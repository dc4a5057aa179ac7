"""Streamed and mixed rows: every row once a pass, the same after a resume, in the portions asked for, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import IterableDataset

from rlhf_lightning import PolicyStage, RowData, Sampler, SupervisedStage
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.data import InstructionData, PreferenceData, PromptData, RatingData
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rollouts.row_source import RowSource

COUNT = 50
ROWS = [{"prompt": f"say {i}\nnow, “ü{i}”", "number": str(i)} for i in range(COUNT)]


def json_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    opened = gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb")  # noqa: SIM115
    with opened as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    return str(path)


def comma_separated(path: Path, rows: list[dict[str, Any]]) -> str:
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="")  # noqa: SIM115
    with opened as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 7) -> str:
    pandas.DataFrame(rows).to_parquet(path, row_group_size=row_group_size)
    return str(path)


class Endless(IterableDataset[dict[str, Any]]):
    """Rows that can only be read from the beginning."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda folder: json_lines(folder / "rows.jsonl", ROWS),
    "jsonl.gz": lambda folder: json_lines(folder / "rows.jsonl.gz", ROWS),
    "csv": lambda folder: comma_separated(folder / "rows.csv", ROWS),
    "csv.gz": lambda folder: comma_separated(folder / "rows.csv.gz", ROWS),
    "parquet": lambda folder: parquet(folder / "rows.parquet", ROWS),
    "hub": lambda folder: datasets.load_dataset(
        "json", data_files=json_lines(folder / "hub.jsonl", ROWS), split="train", streaming=True
    ),
    "IterableDataset": lambda folder: datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3),
    "torch": lambda folder: Endless(),
    "Dataset": lambda folder: datasets.Dataset.from_list(ROWS),
    "several files": lambda folder: [
        json_lines(folder / "a.jsonl", ROWS[:20]), parquet(folder / "b.parquet", ROWS[20:33]), pandas.DataFrame(ROWS[33:])
    ],
}  # fmt: skip


def streamed(train: Any, **options: Any) -> PromptData:
    given = {"streaming": True, "batch_size": 5, "steps_per_epoch": 4, "shuffle_buffer": 8, "validation_fraction": 0}
    return PromptData(train=train, **{**given, **options})


def source_of(data: RowData, seed: int = 3) -> RowSource:
    data.setup("fit")
    return RowSource(data.train_dataloader(), seed)


def numbers(batches: Iterator[list[dict[str, Any]]] | list[list[dict[str, Any]]]) -> list[str]:
    return [row["number"] for batch in batches for row in batch]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_row_comes_once_a_pass_and_a_resumed_run_gets_the_next_one(kind: str, tmp_path: Path) -> None:
    given = SOURCES[kind](tmp_path)  # whose own position, where it has one, does not matter
    whole = source_of(streamed(given))
    states, batches = [], []
    for _ in range(30):  # three passes of 50 rows, over several epochs of four batches
        states.append(json.loads(json.dumps(whole.state_dict())))
        batches.append(whole.next())
    first, second, third = (numbers(batches[i : i + 10]) for i in (0, 10, 20))
    assert sorted(first) == sorted(second) == sorted(third) == sorted(row["number"] for row in ROWS)
    assert first != second != third
    assert {row["prompt"] for row in batches[0] + batches[9]} <= {row["prompt"] for row in ROWS}
    for place in (0, 1, 3, 4, 9, 10, 17, 29):
        resumed = source_of(streamed(given))
        resumed.next()
        resumed.load_state_dict(states[place])
        assert [resumed.next() for _ in range(30 - place)] == batches[place:]


def test_the_order_follows_the_seed_of_the_run(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", ROWS)
    orders = [numbers([source_of(streamed(path), seed).next()]) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    kept = source_of(streamed(path, shuffle_buffer=1))
    assert numbers([kept.next() for _ in range(10)]) == [row["number"] for row in ROWS]


def test_rows_are_shuffled_within_the_buffer(tmp_path: Path) -> None:
    source = source_of(streamed(json_lines(tmp_path / "rows.jsonl", ROWS), batch_size=8))
    first = list(map(int, numbers([source.next()])))
    assert sorted(first) == list(range(8))
    assert first != list(range(8))


def test_weights_are_portions_of_every_batch_whatever_the_sizes(tmp_path: Path) -> None:
    long = json_lines(tmp_path / "long.jsonl", [{"prompt": f"l{i}", "number": "long"} for i in range(40)])
    short = json_lines(tmp_path / "short.jsonl", [{"prompt": f"s{i}", "number": "short"} for i in range(6)])
    for streaming in (True, False):
        data = streamed(
            [long, short], mix=[1, 3], streaming=streaming, batch_size=8, steps_per_epoch=None if not streaming else 4
        )
        source = source_of(data)
        assert len(source) == (4 if streaming else 5)  # 46 rows, in memory, are five batches
        batches = [source.next() for _ in range(10)]
        assert all(Counter(numbers([batch])) == {"long": 2, "short": 6} for batch in batches)
        shorts = [row["prompt"] for batch in batches for row in batch if row["number"] == "short"]
        assert max(Counter(shorts).values()) - min(Counter(shorts).values()) == 0  # ten whole passes
        state = source.state_dict()
        following = [source.next() for _ in range(5)]
        source.load_state_dict(state)
        assert [source.next() for _ in range(5)] == following


def test_a_limit_is_of_each_source_that_is_mixed() -> None:
    for streaming in (True, False):
        source = source_of(streamed([ROWS[:20], ROWS[20:]], mix=[1, 1], limit=5, streaming=streaming))
        seen = Counter(numbers([source.next() for _ in range(10)]))
        assert seen == {row["number"]: 5 for row in [*ROWS[:5], *ROWS[20:25]]}


def test_a_sized_epoch_in_memory(tmp_path: Path) -> None:
    data = streamed(ROWS, streaming=False, steps_per_epoch=3)
    source = source_of(data)
    assert len(source) == 3
    assert sorted(numbers([source.next() for _ in range(10)])) == sorted(row["number"] for row in ROWS)


def test_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 40}", "number": str(i)} for i in range(4000)]  # prompts come back after the checked rows
    data = streamed(json_lines(tmp_path / "rows.jsonl", rows), validation_fraction=0.1, batch_size=100)
    source = source_of(data)
    held_out = {row["prompt"] for row in data.validation_rows or ()}
    assert len(held_out) == 4
    trained = [row["prompt"] for _ in range(36) for row in source.next()]
    assert len(trained) == 3600
    assert set(Counter(trained).values()) == {100}
    assert set(trained) == {f"p{i}" for i in range(40)} - held_out


def test_the_first_thousand_rows_are_checked_and_the_others_when_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "number": str(i)} for i in range(1200)]
    path = tmp_path / "rows.jsonl"
    for bad, line in ((999, "rows.jsonl:1000"), (1100, None)):
        json_lines(path, [*rows[:bad], {"prompt": 3}, *rows[bad + 1 :]])
        data = streamed(str(path), shuffle_buffer=2000)
        if line:
            with pytest.raises(UserError, match=line):
                data.setup("fit")
    source = source_of(data)
    assert "streaming; the first 1000 rows are checked before the run" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"rows.jsonl:1101: .*prompt"):
        [source.next() for _ in range(240)]
    skipping = streamed(str(path), shuffle_buffer=2000, on_bad_row="skip")
    source = source_of(skipping)
    assert sorted(numbers([source.next() for _ in range(239)]))[:2] == ["0", "1"]
    source.next()
    assert skipping.report == {"bad_rows": 1}


class Counted(IterableDataset[dict[str, Any]]):
    """Rows that note how many of them were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(100_000):
            self.read += 1
            yield {"prompt": f"p{i}", "number": str(i)}


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    endless = Counted()
    source = source_of(streamed(endless, limit=12))
    seen = numbers([source.next() for _ in range(12)])  # 60 rows: five passes of twelve
    assert Counter(seen) == {str(i): 5 for i in range(12)}
    assert endless.read == 12 * 6  # one of them the check before the run
    path = tmp_path / "rows.jsonl"
    path.write_bytes(Path(json_lines(path, ROWS[:12])).read_bytes() + b"no JSON\n")
    source = source_of(streamed(str(path), limit=12))
    assert sorted(numbers([source.next() for _ in range(12)]))[:5] == ["0"] * 5


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps_per_epoch": None}, "set data.steps_per_epoch .* or trainer.max_steps"),
        ({"steps_per_epoch": 0}, "data.steps_per_epoch is 0"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer is 0"),
        ({"mix": [1, 2]}, "data.mix has 2 weights and data.train has 1 sources"),
        ({"mix": [-1]}, "data.mix holds -1"),
        ({"num_workers": 2}, "data.num_workers is 2; a streamed data set is read by the run itself"),
        ({"validation_fraction": 0.99}, "left to learn from 0"),
        ({"columns": {"prompt": "question"}}, "no column 'question'"),
    ],
)
def test_options_that_cannot_work_are_one_line(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        source_of(streamed(json_lines(tmp_path / "rows.jsonl", ROWS), **options))


def test_what_cannot_be_streamed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(
        UserError, match=r"rows.json is one JSON array, which cannot be streamed; convert it to JSON lines"
    ):
        source_of(streamed(str(path)))
    rated = [{"prompt": "p", "response": "r", "rating": 1}]
    with pytest.raises(UserError, match=r"RatingData groups rows of the whole file"):
        RatingData(train=rated, streaming=True, steps_per_epoch=1).setup("fit")
    with pytest.raises(UserError, match=r"source 2 of data.train has no row to train on"):
        source_of(PromptData(train=[ROWS[:9], []], mix=[1, 1], validation=ROWS[:1]))
    data = streamed(json_lines(tmp_path / "rows.jsonl", ROWS))
    source = source_of(data)
    with pytest.raises(UserError, match=r"another kind of train data loader"):
        source.load_state_dict({"passes": 0, "taken": 3})
    with pytest.raises(UserError, match=r"a run with 1 data sources and data.train has 2"):
        source_of(streamed([ROWS, ROWS], mix=[1, 1])).load_state_dict(source.state_dict())


def test_max_steps_sizes_a_stream(tmp_path: Path) -> None:
    data = streamed(ROWS, steps_per_epoch=None)
    data.trainer = SimpleNamespace(max_steps=7, accumulate_grad_batches=3)  # type: ignore[assignment]
    assert len(source_of(data)) == 21


def peak_of(path: str) -> int:
    data = streamed(path, shuffle_buffer=200)
    source = source_of(data)
    tracemalloc.start()
    try:
        for _ in range(600):
            source.next()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_depend_on_the_number_of_rows(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": "word " * 50, "number": str(i)} for i in range(10_000)]
    write = json_lines if kind == "jsonl" else partial(parquet, row_group_size=500)
    few, many = write(tmp_path / f"few.{kind}", rows[:1000]), write(tmp_path / f"many.{kind}", rows)
    peak_of(few)
    assert peak_of(many) < 1.2 * peak_of(few)


class Kill(Callback):
    """Saves a checkpoint at a step and ends the run there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


def fitted(stage: Any, data: RowData, root: Path, checkpoint: str | None = None, **options: Any) -> Trainer:
    torch.manual_seed(3)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint)
    return trainer


def test_training_resumes_at_the_same_row(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(37)]
    paths = [json_lines(tmp_path / f"{name}.jsonl", rows[start::2]) for start, name in enumerate("ab")]

    def parts() -> tuple[SupervisedStage, InstructionData]:
        data = InstructionData(
            train=paths,
            mix=[2, 1],
            streaming=True,
            batch_size=3,
            shuffle_buffer=5,
            steps_per_epoch=9,
            validation_fraction=0,
        )
        return SupervisedStage(ModelConfig(name_or_path=tiny_model_folder("llama"))), data

    stage, data = parts()
    fitted(stage, data, tmp_path, max_epochs=2, accumulate_grad_batches=3)
    stopped, data = parts()
    killer = Kill(4, tmp_path / "stopped.ckpt")
    with pytest.raises(RuntimeError, match="killed"):
        fitted(stopped, data, tmp_path, max_epochs=2, accumulate_grad_batches=3, callbacks=[killer])
    resumed, data = parts()
    trainer = fitted(resumed, data, tmp_path, str(tmp_path / "stopped.ckpt"), max_epochs=2, accumulate_grad_batches=3)
    assert trainer.global_step == 6
    assert all(torch.equal(a, b) for a, b in zip(stage.parameters(), resumed.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(stage.parameters(), stopped.parameters(), strict=True))


def test_pairs_are_streamed_with_a_reference_of_its_own(
    tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    rows = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(1500)]
    path = json_lines(tmp_path / "pairs.jsonl", rows)
    data = PreferenceData(train=path, streaming=True, batch_size=2, validation_fraction=0, shuffle_buffer=1400)
    model = ModelConfig(name_or_path=tiny_model_folder("llama"))
    stage = PolicyStage(model, DPO(), reference="full", generation=Sampler(4))
    trainer = fitted(stage, data, tmp_path, max_steps=3)
    assert trainer.global_step == 3
    assert not list(tmp_path.glob("reference_logprobs*"))
    assert torch.isfinite(trainer.callback_metrics["loss/policy"])
