"""A run's folder in Python: its metrics, samples, curves and export."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import pandas

SIGNS = ("config.yaml", "metrics.csv", "summary.json", "predictions.jsonl")
"""Files of which a run's folder has at least one."""


class Run:
    """Open the folder of a run, ended or in progress; every property reads the files as they are now.

    Args:
        folder: of the run, such as `runs/ppo/2026-01-31_12-00-00`.

    Raises:
        UserError: it is no run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not any((self.folder / name).is_file() for name in SIGNS):
            raise UserError(f"{folder} is no run's folder; {_hint(self.folder)}")

    @property
    def config(self) -> dict[str, Any]:
        """The config that repeats the run."""
        import yaml

        return yaml.safe_load(self._text("config.yaml")) or {}

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per logged step, one column per metric; NaN where a step has no value."""
        import pandas

        text = self._text("metrics.csv")
        whole = text[: text.rfind("\n") + 1]  # a run in progress may be writing its last row
        return pandas.read_csv(io.StringIO(whole)) if whole else pandas.DataFrame({"step": []})

    @property
    def samples(self) -> pandas.DataFrame:
        """One row per held-out response: the step of the validation, prompt, response, rewards."""
        return self._json_lines("samples.jsonl")

    @property
    def predictions(self) -> pandas.DataFrame:
        """The rows that `predict` wrote."""
        return self._json_lines("predictions.jsonl")

    @property
    def summary(self) -> dict[str, dict[str, float | None]]:
        """Every held-out metric before and after the run, and the best there can be; empty until the run has ended."""
        return json.loads(self._text("summary.json") or "{}")

    @property
    def export(self) -> Path | None:
        """The folder of the trained model in Hugging Face form; None until there is one."""
        path = self.folder / "export"
        return path if path.is_dir() else None

    @property
    def curves(self) -> Curve:
        """The run's curves, which a notebook shows as an image."""
        return Curve(self)

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _json_lines(self, name: str) -> pandas.DataFrame:
        import pandas

        lines = self._text(name).splitlines(keepends=True)
        return pandas.DataFrame([json.loads(line) for line in lines if line.endswith("\n")])

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Show the folder, the held-out metrics before and after, and the curves."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{_shown(row.get(key))}</td>' for key in KEYS)}</tr>"
            for name, row in self.summary.items()
        )
        head = "".join(f"<th>{key}</th>" for key in ("held-out", *KEYS))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        return f"<div><code>{html.escape(str(self.folder))}</code>{table}{self.curves._repr_html_() or ''}</div>"


KEYS = ("before", "after", "best")


class Curve:
    """Draw the metrics of a run against its optimizer steps."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def path(self) -> Path | None:
        """The file `curves.png` of a run that has ended; None until then."""
        path = self.run.folder / "curves.png"
        return path if path.is_file() else None

    def _repr_png_(self) -> bytes | None:
        """Draw the metrics as they are now; None where there is nothing to draw."""
        from rlhf_lightning.run.curves import draw

        image = io.BytesIO()
        draw(self.run.metrics.to_dict("records"), image)  # type: ignore[arg-type]
        return image.getvalue() or None

    def _repr_html_(self) -> str | None:
        """Return the image as HTML, for notebooks that show no other."""
        image = self._repr_png_()
        data = base64.b64encode(image).decode() if image else ""
        return (
            f'<img alt="curves of {html.escape(self.run.folder.name)}" src="data:image/png;base64,{data}">'
            if image
            else None
        )

    def __repr__(self) -> str:
        return f"curves of {self.run!r}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _hint(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder"
    runs = sorted(path.parent for name in SIGNS for path in folder.glob(f"*/{name}"))
    return f"give one of those in it, such as {runs[-1]}" if runs else "it holds no config.yaml and no metrics.csv"
