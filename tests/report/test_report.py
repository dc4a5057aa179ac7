"""What a report says about runs, and that its page is whole, small and safe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import ATTACK, PROMPTS, config, metrics_of, nine_runs, sample, write_run

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import UserError
from rlhf_lightning.report import page
from rlhf_lightning.report.content import report_of
from rlhf_lightning.report.curves import POINTS, band, frontier
from rlhf_lightning.report.markdown import markdown_report
from rlhf_lightning.report.page import LARGEST, html_report
from rlhf_lightning.report.phases import phases
from rlhf_lightning.report.runs import differing_keys, grouped, read_runs
from rlhf_lightning.report.samples import coloured_tokens, side_by_side
from rlhf_lightning.report.warnings import warnings_of


def embedded(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def warned(folder: Path, samples: list[dict[str, Any]], **changes: Any) -> dict[str, str]:
    metrics = changes.pop("metrics", None) or metrics_of(**changes.pop("constant", {}))
    (run,) = read_runs([write_run(folder / "run", config(**changes), samples, metrics)])
    return {each.kind: each.text for each in warnings_of([run])}


def test_runs_are_grouped_by_everything_but_the_seed_and_named_by_what_differs(tmp_path: Path) -> None:
    runs = read_runs(nine_runs(tmp_path))
    assert [(group.name, [run.seed for run in group.runs]) for group in grouped(runs)] == [
        (name, ["0", "1", "2"]) for name in ("PPO", "DPO", "GRPO")
    ]


def test_only_keys_that_differ_are_shown_and_options_of_another_class_are_not(tmp_path: Path) -> None:
    runs = read_runs(
        write_run(tmp_path / name, config(algorithm, 0, **options), [], metrics_of())
        for name, algorithm, options in [("a", "PPO", {}), ("b", "DPO", {"beta": 0.1}), ("c", "DPO", {"beta": 0.3})]
    )
    assert differing_keys(runs) == ["model.algorithm", "model.algorithm.beta"]
    assert differing_keys(runs[:1]) == []


def test_a_band_is_the_mean_the_lowest_and_the_highest_seed(tmp_path: Path) -> None:
    runs = read_runs(nine_runs(tmp_path)[:3])
    steps, means, lows, highs = band(runs, "val/reward/mean") or []
    assert steps == [0, 10, 20, 30, 40]
    assert (means[4], lows[4], highs[4]) == (1.1, 1.0, 1.2)
    assert band(runs, "no/metric") is None


def test_long_curves_are_averaged_to_few_points(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", config(), [], metrics_of(steps=1000))])
    steps, means, *_ = band([run], "kl/reference") or []
    assert len(steps) <= POINTS
    assert steps[-1] == 1000
    assert means[0] == pytest.approx(0.025)  # of steps 1 to 4


def test_the_frontier_is_the_table_or_else_the_metrics(tmp_path: Path) -> None:
    with_table = read_runs(nine_runs(tmp_path)[:1])
    (without,) = read_runs([write_run(tmp_path / "run", config(), [], metrics_of())])
    assert frontier(with_table)["points"][0][2] == {"step": 40, "kl": 8.0, "reward/mean": 1.0}
    last = frontier([without])["points"][0][-1]
    assert (last["step"], last["kl"], last["reward/mean"]) == (40, pytest.approx(0.4 * 20), 1.0)


def test_samples_are_side_by_side_by_prompt_before_and_after(tmp_path: Path) -> None:
    rows = [sample(step, prompt, f"{prompt}{step}", step) for step in (0, 5, 9) for prompt in ("a", "b", "a")]
    other = [sample(3, "b", "alone", None)]
    runs = read_runs(
        [
            write_run(tmp_path / "one", config(), rows, metrics_of()),
            write_run(tmp_path / "two", config(seed=1), other, metrics_of()),
        ]
    )
    table = side_by_side(runs, 10**6)
    assert table["scores"] == ["reward", "reward/true"]
    assert [row["prompt"] for row in table["rows"]] == ["a", "b", "a"]
    assert table["rows"][1]["runs"] == [
        {"before": ["b0", [0, 0.5]], "after": ["b9", [9, 0.5]]},
        {"after": ["alone", [None, 0.5]]},
    ]
    assert table["rows"][0]["runs"][1] is None


def test_tokens_of_the_last_evaluation(tmp_path: Path) -> None:
    (table,) = coloured_tokens(read_runs(nine_runs(tmp_path)[:1]))
    assert table["numbers"] == ["log_ratio", "logprob"]  # leave_one_out has no number
    assert table["samples"][0]["prompt"] == PROMPTS[0]
    assert table["samples"][0]["tokens"][0] == ["Hello", -0.2, -1.0]


def test_time_and_memory_by_phase(tmp_path: Path) -> None:
    (cost,) = phases(read_runs(nine_runs(tmp_path)[:1]))
    assert cost.seconds == {"generate": 80.0, "score": 20.0, "update": 60.0}
    assert cost.total == 160.0
    assert cost.memory == 0.9


def test_a_judge_that_falls_is_a_warning(tmp_path: Path) -> None:
    def samples(after: float) -> list[dict[str, Any]]:
        at = {0: 0.2, 20: 0.8, 40: after}
        return [sample(s, p, "x", s / 40, x + 0.01 * i) for s, x in at.items() for i, p in enumerate(PROMPTS)]

    text = warned(tmp_path / "a", samples(0.6))["over-optimisation"]
    assert "reward/true fell from 0.895 to 0.695" in text
    assert "The model of step 20 was better" in text
    assert "over-optimisation" not in warned(tmp_path / "b", samples(0.9))


def test_a_fall_within_the_noise_is_no_warning(tmp_path: Path) -> None:
    noise = [0.5, -0.5] * 10
    rows = [sample(s, p, "x", s, 0.5 + (noise[i] - 0.05 if s else 0)) for s in (0, 40) for i, p in enumerate(PROMPTS)]
    assert "over-optimisation" not in warned(tmp_path, rows)


def test_a_gain_that_length_explains_is_a_warning(tmp_path: Path) -> None:
    def samples(gains: list[float]) -> list[dict[str, Any]]:
        before = [sample(0, prompt, "x" * 10, 0.0) for prompt in PROMPTS]
        return before + [sample(40, p, "x" * (10 + 5 * i), gains[i]) for i, p in enumerate(PROMPTS)]

    assert "explains 100% of the gain" in warned(tmp_path / "a", samples([0.1 * i for i in range(20)]))["length"]
    assert "length" not in warned(tmp_path / "b", samples([10 + 0.1 * i for i in range(20)]))


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("KL", {"kl": {"target": 0.05}}, "ended at 0.385 nats per token, beyond its target of 0.05"),
        ("no signal", {"constant": {"reward/tied": 0.8}}, "In 80% of the groups"),
        ("reference gap", {"constant": {"reference/gap": 0.02}}, "differ by 0.02 nats per token"),
        ("truncated responses", {"constant": {"response/truncated": 0.5}}, "50% of the last responses"),
    ],
)
def test_numbers_beyond_a_limit_are_warnings(tmp_path: Path, kind: str, changes: Any, expected: str) -> None:
    assert expected in warned(tmp_path / "a", [], **changes)[kind]
    assert warned(tmp_path / "b", []) == {}


def test_a_collapsed_entropy_is_a_warning(tmp_path: Path) -> None:
    metrics = [{"step": step, "policy/entropy": 1.0 if step < 20 else 0.1} for step in range(40)]
    assert "fell from 1 to 0.1" in warned(tmp_path, [], metrics=metrics)["entropy"]


def test_training_prompts_that_are_held_out_are_a_warning(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config(), [sample(0, "same", "x", 1.0)], metrics_of())
    rows = [{"step": 0, "prompt": prompt} for prompt in ("same", "other")]
    (path / "tables" / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (warning,) = warnings_of(read_runs([path]))
    assert warning.text.startswith("1 of 2 training prompts")


def test_a_page_of_nine_runs_is_small_and_loads_nothing(tmp_path: Path) -> None:
    html = html_report(report_of(read_runs(nine_runs(tmp_path, lambda seed: metrics_of(seed, 2000)))))
    assert len(html.encode()) < LARGEST
    assert not re.search(r"(src|href)=\"?(https?:)?//", html)
    assert "@import" not in html
    assert len(embedded(html)["curves"]["groups"]) == 3


def test_texts_of_models_are_no_markup(tmp_path: Path) -> None:
    html = html_report(report_of(read_runs(nine_runs(tmp_path)), title=ATTACK))
    assert "<script>window.attacked" not in html
    assert "<img src=x" not in html
    assert embedded(html)["samples"]["rows"][-1]["prompt"] == ATTACK
    assert "&lt;script&gt;window.attacked" in html  # the title


def test_a_page_stays_below_its_limit_and_says_what_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [sample(0, f"{i}", "long " * 500, 0.0) for i in range(400)]
    report = report_of(read_runs([write_run(tmp_path / "run", config(), rows, metrics_of())]))
    monkeypatch.setattr(page, "LARGEST", 600_000)
    html = html_report(report)
    assert len(html.encode()) < 600_000
    samples = embedded(html)["samples"]
    assert 0 < len(samples["rows"]) < samples["total"] == 400


def test_markdown_shows_texts_as_they_are(tmp_path: Path) -> None:
    text = markdown_report(report_of(read_runs(nine_runs(tmp_path)), title="a|b <i>"))
    assert text.startswith("## a\\|b &lt;i>\n")
    assert "| PPO-1 | PPO | 1 |" in text
    assert "| val/reward/mean | PPO | 0.1 ± 0.1 | 1.1 ± 0.1 |" in text
    assert "| PPO-0 | 80.0 | 20.0 | 60.0 | 0.90 |" in text


def test_a_run_in_progress_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config(), [sample(0, "p", "r", 1.0)], metrics_of(steps=10), ended=False)
    with (path / "metrics.csv").open("a") as file:
        file.write("11,0.")
    with (path / "samples.jsonl").open("a") as file:
        file.write('{"step": 10, "prom')
    (run,) = read_runs([path])
    assert run.summary["val/reward/mean"] == {"before": 0.0, "after": 0.25}
    assert run.sample_steps == [0]
    assert "(in progress)" in html_report(report_of([run]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(path) for path in nine_runs(tmp_path)[:2]]
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out.startswith("report.html (0.")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", *runs, "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("## 2 runs")
    assert main(["report", *runs, "--markdown", "-o", "a/b.md"]) == 0
    assert (tmp_path / "a" / "b.md").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "nowhere is no run's folder; there is no such folder"),
        (["run", "-o", "run"], "run is a folder; set --output to a file"),
        (["run", "--follow", "0"], "--follow is 0; set it to seconds above 0"),
        (["run", "--follow", "5", "--markdown"], "remove one of them"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", config(), [], metrics_of())
    assert main(["report", *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config(), [sample(0, "p", "r", 1.0)], metrics_of())
    (path / "samples.jsonl").write_text('{"step": 0, "prompt": "p"}\n{"step": \n')
    with pytest.raises(UserError, match=r"samples\.jsonl:2 is no JSON object with a step"):
        read_runs([path])


def test_following_makes_the_page_again_after_a_change_and_ends_without_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write_run(tmp_path / "run", config(), [], metrics_of(steps=10), ended=False), tmp_path / "page.html"
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        pages.append(output.read_text())
        if len(pages) == 1:
            (path / "samples.jsonl").write_text(json.dumps(sample(0, "a new prompt", "r", 1.0)) + "\n")
        if len(pages) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_lightning.report.command.time.sleep", sleep)
    assert main(["report", str(path), "-o", str(output), "--follow", "7"]) == 0
    assert 'data-reload="7.0"' in pages[0]
    assert ["a new prompt" in text for text in pages] == [False, True, True]
    assert 'data-reload="' not in output.read_text()
    assert "no longer reloads" in capsys.readouterr().out
