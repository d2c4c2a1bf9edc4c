"""Row-sparse gradients: tables of which a step uses few rows cost what these rows cost."""

from adaptx.sparse.batches import mean_over_batches, mean_over_devices
from adaptx.sparse.decay import ReadDecayState, flush, read
from adaptx.sparse.gradients import rows_value_and_grad, unique_ids, value_and_grad
from adaptx.sparse.in_place import check_in_place
from adaptx.sparse.lazy import lazy_rows
from adaptx.sparse.lookups import TableUse
from adaptx.sparse.optimizers import adagrad, adam, ftrl, lamb_rows, partial_rowwise_adam, rowwise_adagrad
from adaptx.sparse.row_rules import PartialRowwiseAdamState, RowwiseAdaGradState, RowwiseAdamState
from adaptx.sparse.rows import RowSparse, UniqueIds

__all__ = [
    # Gradients
    "RowSparse", "value_and_grad", "TableUse", "rows_value_and_grad", "unique_ids", "UniqueIds",
    # One batch in parts
    "mean_over_batches", "mean_over_devices",
    # Any transformation on the rows that are used, and whether the compiled step leaves the rest alone
    "lazy_rows", "check_in_place",
    # Ready optimizers
    "adagrad", "rowwise_adagrad", "RowwiseAdaGradState",
    "adam", "RowwiseAdamState",
    "partial_rowwise_adam", "PartialRowwiseAdamState",
    "ftrl", "lamb_rows",
    # Decay that is exact for rows that are not used
    "read", "flush", "ReadDecayState",
]  # fmt: skip
