"""A data module around loaders that already exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningDataModule

from rlhf_lightning.errors import UserError


class LoaderData(LightningDataModule):
    """Give a stage `DataLoader`s of your own: `trainer.fit(stage, datamodule=LoaderData(train_loader, validation_loader))`.

    A batch is a list of rows, or a dictionary of columns, as a `DataLoader` makes of rows of text and numbers by default. With
    messages or other lists in a row, make the loader with `collate_fn=list`.

    Args:
        train: for `fit`.
        validation: for `validate`, and during `fit`.
        test: for `test`; by default the validation loader.
        predict: for `predict`; by default the validation loader.
    """

    def __init__(
        self,
        train: Iterable[Any] | None = None,
        validation: Iterable[Any] | None = None,
        test: Iterable[Any] | None = None,
        predict: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        given = {"train": train, "validation": validation, "test": test, "predict": predict}
        for name, loader in given.items():
            if loader is not None and (isinstance(loader, str) or not hasattr(loader, "__iter__")):
                raise UserError(
                    f"LoaderData.{name} is {loader!r:.60}; expected a DataLoader. Files are for PromptData, InstructionData and "
                    "PreferenceData"
                )
        self.loaders = given

    def _loader(self, name: str) -> Any:
        loader = self.loaders[name]
        return [] if loader is None else loader

    def train_dataloader(self) -> Any:
        """Return the training loader.

        Raises:
            UserError: there is none.
        """
        if self.loaders["train"] is None:
            raise UserError("LoaderData.train is not given; pass LoaderData(train=a DataLoader)")
        return self.loaders["train"]

    def val_dataloader(self) -> Any:
        """Return the validation loader."""
        return self._loader("validation")

    def test_dataloader(self) -> Any:
        """Return the test loader."""
        return self._loader("validation" if self.loaders["test"] is None else "test")

    def predict_dataloader(self) -> Any:
        """Return the loader to predict from."""
        return self._loader("validation" if self.loaders["predict"] is None else "predict")
