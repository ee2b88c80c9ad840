"""Every Triton kernel in the shapes that are compiled, as its launcher calls it."""

from dataclasses import dataclass, replace
from typing import Any

import triton

from ultramem_kernels.candidates import triton_kernel as candidates
from ultramem_kernels.grid_top_m import triton_epilogue as grid_epilogue
from ultramem_kernels.grid_top_m import triton_kernel as grid_top_m
from ultramem_kernels.pool import triton_gradients as gradients
from ultramem_kernels.pool import triton_kernel as pool
from ultramem_kernels.products import triton_kernel as products
from ultramem_kernels.table_update import triton_kernel as table_update


@dataclass(frozen=True)
class Case:
    """One kernel with its constants, as its launcher calls it."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    wide: bool = True
    """Whether rows are read, which must be 128 bits at a time."""
    loop_bytes: int = 0
    """Of rows, that one turn of the innermost loop reads; 0 where that is not what limits the kernel."""


TABLES = ((192, "bf16"), (256, "bf16"), (512, "bf16"), (256, "fp32"))
"""Slices of a core and types of tables: 192 in V1-227M, 256 in 151M-x12, 512 in 1.6B-x12."""
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


def cases() -> list[Case]:
    """Every kernel in the shapes of the paper's models."""
    found = [*pool_cases(), *gradient_cases(), *product_cases(), *candidate_cases(), *grid_cases(), *update_cases()]
    assert len({case.name for case in found}) == len(found)
    return found


def pool_cases() -> list[Case]:
    """Sums of rows: a token's by block, of one, of the paper's four, of as many as there may be; and any group's."""
    found = [pool_case("pool", blocks, *table) for table in TABLES for blocks in (1, 4)]
    found += [pool_case("pool_groups", 1, *table) for table in TABLES if table[0] != 512]
    # more blocks than the paper's are limited by their multiplications
    return [*found, replace(pool_case("pool", pool.MASKED_BLOCKS, 256, "bf16"), loop_bytes=0)]


def pool_case(name: str, blocks: int, width: int, element: str) -> Case:
    table, size = f"*{element}", ELEMENT_BYTES[element]
    pointers = {"out_ptr": table, "table_ptr": table, "rows_ptr": "*i32", "blocks_ptr": "*u8", "scores_ptr": table}
    pointers |= {"starts_ptr": "*i64", "picks": "i32", "of_group": "i32", "value_dim": "i32"}
    tile = pool.forward_tile(width, size)
    constants = {"WIDTH": width, "BLOCKS": blocks, "EVEN": name == "pool"} | tile
    loop_bytes = tile["TILE_V"] * tile["TILE_K"] * tile["STEPS"] * size
    title = f"{name} {element} {width} blocks {blocks}"
    return Case(title, pool.pool_kernel, pointers, constants, warps=1, loop_bytes=loop_bytes)


def gradient_cases() -> list[Case]:
    """Sums by row: of weighted gradients, with those of the scores; of what is given; and of the long rows' parts."""
    found = []
    for width, element in TABLES:
        table = f"*{element}"
        tile, warps = gradients.backward_tile(width)
        pointers = {"table_grad_ptr": "*fp32", "partial_ptr": "*fp32", "scores_grad_ptr": table, "table_ptr": table}
        pointers |= {"grad_ptr": table, "sorted_rows_ptr": "*i32", "order_ptr": "*i32", "group_ptr": "*i64"}
        pointers |= {"scores_ptr": table, "chunk_starts_ptr": "*i32", "slots_ptr": "*i32"}
        pointers |= {"picks": "i32", "value_dim": "i32"}
        steps = {"WIDTH": width, "TILE_V": tile, "TILE_K": gradients.PICKS_OF_A_STEP}
        loop_bytes = width * gradients.PICKS_OF_A_STEP * ELEMENT_BYTES[element]
        both = {"WITH_TABLE": True, "WITH_SCORES": True, "PLAIN": False}
        added = {"WITH_TABLE": True, "WITH_SCORES": False, "PLAIN": True}
        for name, wanted in (("chunk", both), ("add_rows", added)):
            title = f"{name} {element} {width}"
            found.append(Case(title, gradients.chunk_kernel, pointers, steps | wanted, warps, loop_bytes=loop_bytes))
    pointers = {"table_grad_ptr": "*fp32", "partial_ptr": "*fp32", "run_rows_ptr": "*i32", "run_slots_ptr": "*i32"}
    pointers |= {"value_dim": "i32"}
    tile = {"TILE_V": gradients.RUN_TILE}
    return [*found, Case("run 512", gradients.run_kernel, pointers, tile, gradients.RUN_WARPS)]


def product_cases() -> list[Case]:
    """Inner products with rows of a pre-value table: 256 wide, and 192, which needs a narrower tile."""
    found = []
    for width, element in ((192, "bf16"), (256, "bf16"), (256, "fp32")):
        tile, warps = products.product_tile(width)
        pointers = {"out_ptr": "*fp32", "table_ptr": f"*{element}", "rows_ptr": "*i32", "starts_ptr": "*i64"}
        pointers |= {"vectors_ptr": f"*{element}", "value_dim": "i32"}
        constants = {"TILE_K": products.PICKS_AT_A_TIME, "TILE_V": tile}
        loop_bytes = tile * products.PICKS_AT_A_TIME * ELEMENT_BYTES[element]
        title = f"products {element} {width}"
        found.append(Case(title, products.products_kernel, pointers, constants, warps, loop_bytes=loop_bytes))
    return found


def candidate_cases() -> list[Case]:
    """Stage 1, tiles of the keys: 1,616 (V1-227M) to 3,578 (1.6B-x12), twice the side of the table's rows."""
    pointers = {"found_ptr": "*i64", "values_ptr": "*fp32", "scores_ptr": "*fp32", "direction_ptr": "*fp32"}
    sizes = {"tokens": "i32", "side": "i32", "slab": "i32", "kept": "i32"}
    return [
        Case(
            f"candidates {tile}",
            candidates.candidates_kernel,
            pointers | sizes,
            {"COMPONENTS": 2, "TILE": tile, "GROUPS": 32, "WITH_VALUES": tile == candidates.SLAB_KEYS},
            candidates.selection_warps(tile),
            wide=False,
        )
        for tile in (1024, 2048, 4096, candidates.SLAB_KEYS)
    ]


def grid_cases() -> list[Case]:
    """Stage 2 with its epilogue, two cores and the shuffle; 128 x 128 places in slabs, whose epilogue comes after."""
    epilogue = {"picked_ptr": "*i32", "blocks_ptr": "*u8", "scores_ptr": "*fp32", "index_ptr": "*i64"}
    epilogue |= {"cores_ptr": "*fp32", "offsets_ptr": "*i32", "side": "i32", "num_rows": "i32", "heads": "i32"}
    choice = {"found_ptr": "*i32", "values_ptr": "*fp32", "rows_ptr": "*fp32", "columns_ptr": "*fp32"}
    choice |= {"core_ptr": "*fp32", "stride": "i32", "kept": "i32"}
    gradient = {"grad_ptr": "*fp32", "places_ptr": "*i32", "sides_ptr": "*fp32", "m": "i32"}
    found = []
    for count in (16, 42, 80, 128):
        slab = grid_top_m.slab_of(count)
        tile, emits = triton.next_power_of_2(slab), slab == count**2
        shape = {"CANDIDATES": count, "COMPONENTS": 2, "CORES": 2}
        shuffle = {"ROUNDS": 4, "ONE_BLOCK": False, "PICKS": triton.next_power_of_2(count)}
        slabs = {"SLAB": slab, "TILE": tile, "WITH_VALUES": not emits, "EMIT": emits}
        constants = shape | shuffle | slabs | {"GROUPS": triton.next_power_of_2(count)}
        warps = grid_top_m.grid_warps(tile)
        kernel = grid_top_m.grid_kernel
        found.append(Case(f"grid {count}", kernel, choice | epilogue, constants, warps, wide=False))
    shape = {"CANDIDATES": 80, "COMPONENTS": 2, "CORES": 2}
    picks, warps = {"PICKS": 128}, grid_epilogue.BACKWARD_WARPS
    tiles = {"TILE_M": grid_epilogue.PICKS_AT_A_TIME, "TILE_C": grid_epilogue.CANDIDATES_AT_A_TIME}
    pointers = epilogue | {"places_ptr": "*i32", "sides_ptr": "*fp32", "m": "i32"}
    alone = shape | {"ROUNDS": 4, "ONE_BLOCK": False} | picks
    found.append(Case("grid epilogue", grid_epilogue.emit_kernel, pointers, alone, warps, wide=False))
    pointers = gradient | {"sides_grad_ptr": "*fp32", "cores_ptr": "*fp32", "heads": "i32"}
    kernel = grid_epilogue.sides_grad_kernel
    found.append(Case("grid sides gradient", kernel, pointers, shape | tiles, warps, wide=False))
    pointers = gradient | {"partial_ptr": "*fp32"}
    kernel = grid_epilogue.cores_grad_kernel
    found.append(Case("grid cores gradient", kernel, pointers, shape | picks, warps, wide=False))
    return found


def update_cases() -> list[Case]:
    """All elements with fp32 moments, and the touched ones with moments in bf16."""
    numbers = ("decay", "move", "beta1", "beta2", "root_correction", "epsilon")
    pointers = {"weight_ptr": "*bf16", "master_ptr": "*fp32", "grad_ptr": "*fp32", "count": "i64"}
    pointers |= dict.fromkeys(numbers, "fp32")
    return [
        Case(
            f"table update{' touched' if touched else ''}",
            table_update.update_kernel,
            pointers | {"mean_ptr": moments, "square_ptr": moments},
            {"TILE": tile, "WITH_WEIGHT": True, "TOUCHED_ONLY": touched, "CLEAR_GRAD": not touched},
            table_update.WARPS,
        )
        for touched, tile, moments in (
            (False, table_update.TILE, "*fp32"),
            (True, table_update.TOUCHED_TILE, "*bf16"),
        )
    ]
