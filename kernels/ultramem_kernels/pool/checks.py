"""What ``pool`` and its gradients say to arguments that they cannot take."""

from torch import Tensor

from ultramem_kernels import arguments


def check_lookup(table_NV: Tensor, rows: Tensor, scores: Tensor, scores_shape: tuple[int | str, ...]) -> None:
    """Table, rows and scores; ``scores_shape`` as ``arguments.need_shape`` has it."""
    arguments.need_table("table_NV", table_NV)
    arguments.need_dtype("rows", rows, arguments.INTEGERS)
    arguments.need_dtype("scores", scores, arguments.FLOATS)
    arguments.need_shape("scores", scores, scores_shape)
    arguments.need_same_device({"table_NV": table_NV, "rows": rows, "scores": scores})
    cores, width = scores.shape[0], table_NV.shape[1]
    if cores == 0 or width % cores:
        raise arguments.ArgumentError(
            f"scores has {cores} cores for a table of {width} columns; expected a number that divides the columns, "
            "which the cores share equally"
        )
    arguments.need_in_range("rows", rows, table_NV.shape[0])
