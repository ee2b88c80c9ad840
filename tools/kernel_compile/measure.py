"""Compiles a kernel without a GPU, and counts what its code takes."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import triton
import triton.backends.nvidia as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernel_compile.cases import Case

BINARIES = Path(nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Compiled:
    """What a compilation took."""

    case: str
    target: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    wide_loads: int
    atomics: int
    per_kib: int | None
    """Instructions that all warps of a program issue for a KiB of rows, in the loop that reads them."""


def compile_case(case: Case, capability: int) -> Compiled:
    """Compile, assemble, count."""
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
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps})
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    return Compiled(
        case.name,
        f"sm_{capability}",
        registers=registers_of(cubin),
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=spilled_bytes(ptx, capability),
        wide_loads=len(re.findall(r"ld\.global[^\n]*\.v4\.b32", ptx)),
        # on the start of a word: cp.async has "shared.global" in its name
        atomics=len(re.findall(r"(?<![a-z])(?:red|atom)\.", ptx)),
        per_kib=ceil(1024 * case.warps * loop_instructions(cubin) / case.loop_bytes) if case.loop_bytes else None,
    )


def registers_of(cubin: bytes) -> int:
    return max(int(number) for number in re.findall(r"REG:(\d+)", dump_of(cubin, "--dump-resource-usage")))


def loop_instructions(cubin: bytes) -> int:
    """Machine instructions of the longest loop that has no other loop in it; branches jump back to its begin."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", dump_of(cubin, "-sass"), re.MULTILINE)
    code = [(int(place, 16), instruction) for place, instruction in lines]
    loops = []
    for place, instruction in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
        if jump and int(jump[1], 16) < place:
            loops.append((int(jump[1], 16), place))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(sum(begin <= place <= end for place, _ in code) for begin, end in innermost)


def dump_of(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [BINARIES / "cuobjdump", what, file.name]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def spilled_bytes(ptx: str, capability: int) -> int:
    """Stores and loads that ptxas reports."""
    name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        words = [BINARIES / "ptxas", "-v", f"--gpu-name={name}", file, "-o", file.with_suffix(".cubin")]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill", said))
