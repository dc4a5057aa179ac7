"""The base of all data modules: rows as plain dictionaries, in batches that are lists."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.errors import UserError, check_seed

Row = dict[str, Any]


class RowData(LightningDataModule):
    """Rows as plain dictionaries, in batches that are lists; the stage makes tokens of them."""

    def __init__(
        self, batch_size: int = 8, validation_batch_size: int | None = None, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}; it must be at least 1")
        if validation_batch_size is not None and validation_batch_size < 1:
            raise UserError(f"data.validation_batch_size is {validation_batch_size}; it must be at least 1")
        check_seed("data.seed", seed)
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0")
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size or batch_size
        self.num_workers, self.seed = num_workers, seed
        self.train_rows: list[Row] | None = None
        self.validation_rows: list[Row] | None = None
        self.test_rows: list[Row] | None = None
        self.predict_rows: list[Row] | None = None

    def rows(self, split: str) -> list[Row] | None:
        """The rows of `train`, `validation`, `test` or `predict`; None where there are none."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read and check the rows that `stage` needs."""
        needed = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage]:
            if getattr(self, f"{split}_rows") is None:
                setattr(self, f"{split}_rows", self.rows(split))
        self.say_duplicates()

    def say_duplicates(self) -> None:
        """Say once how many rows are there twice."""

    def _loader(self, rows: list[Row] | None, batch_size: int, train: bool = False) -> Any:
        if not rows:
            return []
        whole = train and len(rows) >= batch_size
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=train,
            drop_last=whole,
            num_workers=self.num_workers,
            collate_fn=list,
        )

    def train_dataloader(self) -> Any:
        """Shuffled; the last batch is dropped if it is not full."""
        return self._loader(self.train_rows, self.batch_size, train=True)

    def val_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.validation_rows, self.validation_batch_size)

    def test_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.test_rows, self.validation_batch_size)

    def predict_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.predict_rows, self.validation_batch_size)
