"""Compiles a kernel without a GPU, and counts what its code takes.

Triton keeps what it compiled, under a hash of source, constants, target and compiler. The counts lie in its folder
under the same hash: taking a kernel apart costs as much as compiling it.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernel_compile.cases import Case

BINARIES = Path(nvidia.__file__).parent / "bin"
COUNTING = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Of this file: counts of another one are not taken."""


@dataclass(frozen=True)
class Compiled:
    """What a compilation took."""

    case: str
    target: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    """Of memory, that a thread has for what its registers cannot hold."""
    wide_loads: int
    atomics: int
    per_kib: int | None
    """Instructions that all warps of a program issue for a KiB of rows, in the loop that reads them."""


def compile_case(case: Case, capability: int, most_registers: int | None = None) -> Compiled:
    """Compile, assemble, count; what is known of the same kernel is taken from before.

    Args:
        case: The kernel.
        capability: 80 or 90.
        most_registers: Of a thread; with too few it spills.
    """
    compiled = triton_compile(case, capability, most_registers)
    return kept_counts(compiled.hash, case, lambda: counts_of(compiled, case, capability))


def triton_compile(case: Case, capability: int, most_registers: int | None) -> Any:
    """The kernel as Triton compiles it for a launch with this signature."""
    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    # what a launch finds out: torch aligns memory, and rows and tables have multiples of 16 elements
    aligned = [name for name, kind in case.signature.items() if kind.startswith("*") or name in ("value_dim", "count")]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": case.warps} | ({} if most_registers is None else {"maxnreg": most_registers})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def kept_counts(kernel_hash: str, case: Case, count: Callable[[], Compiled]) -> Compiled:
    """What lies beside the compiled kernel, or what ``count`` finds, which then lies there."""
    key = hashlib.sha256(f"{kernel_hash} {COUNTING} {case.name} {case.loop_bytes}".encode()).hexdigest()
    file = Path(triton.knobs.cache.dir) / "ultramem-counts" / f"{key}.json"
    if file.exists():
        return Compiled(**json.loads(file.read_text()))
    counts = count()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(asdict(counts)))
    part.replace(file)  # whole or not at all: another process may read
    return counts


def counts_of(compiled: Any, case: Case, capability: int) -> Compiled:
    """Registers, memory and instructions of a compiled kernel."""
    ptx, dump = compiled.asm["ptx"], dump_of(compiled.asm["cubin"], with_code=bool(case.loop_bytes))
    return Compiled(
        case.name,
        f"sm_{capability}",
        registers=most_of("REG", dump),
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=max(most_of("STACK", dump), most_of("LOCAL", dump)),
        wide_loads=len(re.findall(r"ld\.global[^\n]*\.v4\.b32", ptx)),
        # on the start of a word: cp.async has "shared.global" in its name
        atomics=len(re.findall(r"(?<![a-z])(?:red|atom)\.", ptx)),
        per_kib=ceil(1024 * case.warps * loop_instructions(dump) / case.loop_bytes) if case.loop_bytes else None,
    )


def most_of(resource: str, dump: str) -> int:
    return max(int(number) for number in re.findall(rf"\b{resource}:(\d+)", dump))


def loop_instructions(dump: str) -> int:
    """Machine instructions of the longest loop that has no other loop in it; branches jump back to its begin."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", dump, re.MULTILINE)
    code = [(int(place, 16), instruction) for place, instruction in lines]
    loops = []
    for place, instruction in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
        if jump and int(jump[1], 16) < place:
            loops.append((int(jump[1], 16), place))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(sum(begin <= place <= end for place, _ in code) for begin, end in innermost)


def dump_of(cubin: bytes, *, with_code: bool) -> str:
    """The resources of a kernel, which cost milliseconds, and its instructions, which cost tenths of a second."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [BINARIES / "cuobjdump", "--dump-resource-usage", *(["-sass"] if with_code else []), file.name]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
