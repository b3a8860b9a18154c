"""Tables of Hugging Face `datasets` as map-style datasets: rows of tensors, columns of texts left out."""

import warnings
from typing import Any

import torch
from torch import Tensor

from compressor.batches import TARGET_KEYS
from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.given.numbers import as_usual


def is_table(data: Any) -> bool:
    """Whether `data` is a table of rows with named columns, as `datasets.Dataset` is; a stream of rows is none."""
    return all(hasattr(data, name) for name in ("column_names", "features", "__getitem__", "__len__")) and isinstance(
        data.column_names, list
    )


class TableRows:
    """The rows of `table` as dicts of tensors; a class, so that workers of a loader can have it.

    Columns that hold no numbers, texts for instance, are left out with a WorkloadWarning. Raises WorkloadError where
    labels or all inputs are such, and for lists of several lengths in the first two rows.
    """

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = table, name
        if not len(table):
            raise WorkloadError(f"{name} must have rows, got a table of none; give it samples")
        rows = [table[index] for index in range(min(2, len(table)))]
        found = [{column: _tensor(value) for column, value in row.items()} for row in rows]
        self.columns = [column for column in rows[0] if all(row[column] is not None for row in found)]
        left = [column for column in rows[0] if column not in self.columns]
        if not self.columns:
            raise WorkloadError(
                f"{name} must have columns of numbers, got {', '.join(map(repr, left))} without any; tokenize texts "
                "and turn images into arrays with .map() or .with_transform()"
            )
        self._check_columns(rows[0], left)
        if left:
            warnings.warn(
                f"{name}: the columns {', '.join(map(repr, left))} hold no numbers and are left out",
                WorkloadWarning,
                stacklevel=6,
            )
        for column in self.columns:
            shapes = {tuple(row[column].shape) for row in found}
            if len(shapes) > 1:
                raise WorkloadError(
                    f"{name}: the column {column!r} must have one shape in all rows, got {sorted(shapes)}; pad it, or "
                    "give DataLoader(table, collate_fn=...)"
                )

    def _check_columns(self, row: dict[str, Any], left: list[str]) -> None:
        """Raises WorkloadError where labels are texts, or nothing but labels is left of a row without those `left`."""
        label = next((key for key in TARGET_KEYS if key in row), None)
        if label in left:
            raise WorkloadError(
                f"{self.name}: the column {label!r} must hold numbers, got {row[label]!r}; number the classes: "
                f"{self.name}=table.class_encode_column({label!r})"
            )
        if label is None:
            raise WorkloadError(
                f"{self.name} must have a column of labels, called one of {', '.join(TARGET_KEYS)}, got "
                f"{', '.join(map(repr, row))}; rename it: table.rename_column({self.columns[-1]!r}, 'labels')"
            )
        if self.columns == [label]:
            kinds = ", ".join(f"{column!r} ({type(row[column]).__name__})" for column in left) or "no other column"
            raise WorkloadError(
                f"{self.name} must have columns of numbers besides {label!r}, got {kinds}; tokenize texts and turn "
                "images into arrays with .map() or .with_transform()"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.table[index]
        return {column: _tensor(row[column]) for column in self.columns}


def _tensor(value: Any) -> Any:
    """`value` as a tensor, None where it holds no numbers."""
    if isinstance(value, list):
        try:
            value = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    elif isinstance(value, bool | int):
        value = torch.tensor(value)
    value = as_usual(value)
    return value if isinstance(value, Tensor) else None
