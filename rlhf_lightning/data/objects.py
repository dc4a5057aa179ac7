"""Rows from objects of Python: data sets of Hugging Face, DataFrames, lists of dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from rlhf_lightning.errors import UserError

ACCEPTED = "files, hub names, a datasets.Dataset or IterableDataset, a pandas DataFrame, or a list of dictionaries"


def is_rows(value: Any) -> bool:
    """Whether `value` is one data set in memory, and neither a path nor a list of sources.

    >>> is_rows([{"prompt": "hi"}]), is_rows("rows.jsonl"), is_rows(["a.jsonl", "b.jsonl"]), is_rows([])
    (True, False, False, True)
    """
    if isinstance(value, list | tuple):
        return all(isinstance(row, Mapping) for row in value)
    return not isinstance(value, str)


def label(value: Any) -> str:
    """What messages call a data set in memory."""
    return type(value).__name__


def is_iterable_only(value: Any) -> bool:
    """Whether rows can be read in their order alone, as those of a datasets.IterableDataset."""
    named = any(base.__name__ == "IterableDataset" for base in type(value).__mro__)  # torch gives its own a __getitem__
    return named or (hasattr(value, "__iter__") and not hasattr(value, "__len__"))


def is_endless(source: Any) -> bool:
    """Whether a source of `data.train` has no known end, and so is streamed."""
    return not isinstance(source, str) and is_iterable_only(source)


def row_getter(value: Any) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """The number of rows of a data set in memory, and the row of a number.

    Raises:
        UserError: it is no data set.
    """
    check_object(value)
    value = undecoded(value)
    if hasattr(value, "iloc"):
        columns = [str(name) for name in value.columns]
        return len(value), lambda i: dict(zip(columns, map(plain, _cells(value, i)), strict=True))
    return len(value), lambda i: _mapping(value[i], f"{label(value)}, row {i + 1}")


def first_rows(value: Any, limit: int | None) -> Iterator[dict[str, Any]]:
    """The rows of a data set in memory, up to `limit` of them.

    Raises:
        UserError: it is no data set, or has no known end.
    """
    check_object(value)
    value = undecoded(value)
    if hasattr(value, "itertuples"):
        columns = [str(name) for name in value.columns]
        cells = islice(value.itertuples(index=False, name=None), limit)
        yield from (dict(zip(columns, map(plain, row), strict=True)) for row in cells)
        return
    if not is_iterable_only(value):
        count, row = row_getter(value)
        yield from (row(i) for i in range(count if limit is None else min(limit, count)))
        return
    for number, found in enumerate(islice(value, limit), 1):
        yield _mapping(found, f"{label(value)}, row {number}")


def undecoded(data: Any) -> Any:
    """Return a data set of Hugging Face whose images, audio and video stay paths and bytes; other objects as they are.

    Decoding opens paths, which may be addresses: a data set could make the run send requests.
    """
    features = getattr(data, "features", None)
    kinds = (features or {}).items() if hasattr(data, "cast_column") else ()
    for name, kind in kinds:
        if (plain_kind := _without_decoding(kind)) is not kind:
            data = data.cast_column(name, plain_kind)
    return data


def _without_decoding(kind: Any) -> Any:
    """Return a feature of a data set that decodes nothing, also within lists and structures; the same if it never did."""
    if getattr(kind, "decode", False) is True:
        changed = copy.copy(kind)
        changed.decode = False
        return changed
    if isinstance(kind, Mapping):
        make: Any = type(kind)
        inner = {name: _without_decoding(value) for name, value in kind.items()}
        return make(inner) if any(inner[name] is not kind[name] for name in inner) else kind
    if isinstance(kind, list) and kind:
        element = _without_decoding(kind[0])
        return kind if element is kind[0] else [element]
    if (feature := getattr(kind, "feature", None)) is not None and (
        element := _without_decoding(feature)
    ) is not feature:
        changed = copy.copy(kind)
        changed.feature = element
        return changed
    return kind


def check_object(value: Any) -> None:
    """Refuse what holds no rows.

    Raises:
        UserError: naming its type and what is accepted.
    """
    if hasattr(value, "batch_size") and hasattr(value, "collate_fn"):
        raise UserError(
            "data takes rows and was given a DataLoader, which holds batches: pass "
            "data=rlhf_lightning.LoaderData(train=loader, validation=loader) in place of this data module"
        )
    if isinstance(value, Mapping) and value and all(hasattr(column, "column_names") for column in value.values()):
        splits = ", ".join(map(str, value))
        raise UserError(
            f"data was given a {label(value)} with the splits {splits}; pass one of them, such as splits['train']"
        )
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, Mapping | str | bytes)
    if not sized and not is_iterable_only(value):
        raise UserError(f"data takes {ACCEPTED}, found {label(value)}")


def _cells(frame: Any, i: int) -> list[Any]:
    return [frame.iat[i, column] for column in range(frame.shape[1])]


def _mapping(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: expected a dictionary of columns, found {label(row)} {row!r:.60}")
    return {str(name): plain(value) for name, value in row.items()}


def plain(value: Any) -> Any:
    """A cell as Python's own types: NumPy's scalars and arrays, and every kind of missing value as None.

    >>> plain(float("nan")), plain([1, float("nan")]), plain("NA"), plain(0)
    (None, [1, None], 'NA', 0)
    """
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, str | bool | int | None):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if _missing(value) else value


def _missing(value: Any) -> bool:
    """Whether a cell is NaN, NaT or pandas' NA, none of which equals itself."""
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # of pandas' NA a comparison has no truth; of an array it has several
        return type(value).__name__ == "NAType"
