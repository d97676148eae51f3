"""Which tiles suit attention on tensor cores? Other sizes than flash_tensor_core.cu has, side by side.

    python benchmarks/gpu_tiles.py                # on a GPU: the times, beside registers and error
    python benchmarks/gpu_tiles.py --registers    # without a GPU: registers (and spilled bytes), compiled for sm_90

A block keeps a tile of rows and walks over the others. Larger tiles read shared memory less often and take more
registers, so fewer warps share a multiprocessor, and less of their waiting is hidden. Which is better, a GPU must say.
"""

import argparse
import re
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / folder) for folder in (".", "kernels", "benchmarks")]

from minift_kernels import nvrtc  # noqa: E402
from minift_kernels.attention.cuda_c import flash_tensor_core  # noqa: E402

FILE = flash_tensor_core.file
SIZE = 64
"""Columns of a head."""
KERNELS = ("forward", "dk_dv", "dq")
SHAPES = ((16, 512, 12, False), (4, 2048, 16, True))
"""Texts, tokens of each, heads, and whether attention is causal."""


@dataclass(frozen=True)
class Tiles:
    """Sizes in place of the file's own."""

    own_tiles: int = 2
    """Of 16 rows, which a warp keeps."""
    forward_walk: int = 64
    """Rows of a tile that walks, in forward."""
    walk: int = 32
    """The same in backward."""
    warps: int = 4
    blocks: int = 1
    """Of a multiprocessor, for which the compiler has to leave registers."""

    @property
    def own_rows(self) -> int:
        return 16 * self.own_tiles * self.warps

    def source(self) -> str:
        """The file with these sizes. Raises ValueError where it has no such line any more."""
        text = FILE.read_text()
        for pattern, value in (
            (r"own_tiles = D <= 64 \? 2 : 1", f"own_tiles = {self.own_tiles}"),
            (r"forward_walk_rows = 128 / sizeof\(T\)", f"forward_walk_rows = {self.forward_walk}"),
            (r"walk_rows = 32;", f"walk_rows = {self.walk};"),
            (r"threads = 128, warps = 4", f"threads = {32 * self.warps}, warps = {self.warps}"),
            (r"__launch_bounds__\(128\)", f"__launch_bounds__({32 * self.warps}, {self.blocks})"),
        ):
            text, count = re.subn(pattern, value, text)
            if count == 0:
                raise ValueError(f"{FILE.name} has no {pattern!r}")
        return text

    def shared_bytes(self, kernel: str) -> int:
        """Of dynamic shared memory, in bfloat16."""
        if kernel == "forward":
            return 2 * SIZE * (self.own_rows + 2 * 2 * self.forward_walk)
        return 2 * SIZE * (2 * self.own_rows + 2 * 2 * self.walk) + 2 * 2 * self.walk * 4

    def __str__(self) -> str:
        return (
            f"{self.warps} warps of {16 * self.own_tiles} rows, walk {self.forward_walk} and {self.walk}, "
            f"{self.blocks} blocks"
        )


def candidates() -> list[Tiles]:
    """The file's own sizes first; then what leaves registers for as many blocks as are asked for."""
    fewer_rows = [
        Tiles(1, forward_walk, walk, warps, blocks)
        for (forward_walk, walk), (warps, blocks) in product(
            ((32, 32), (64, 32), (64, 64)), ((4, 3), (4, 4), (8, 1), (8, 2))
        )
    ]
    own = Tiles()
    return [
        own,
        replace(own, blocks=2),
        replace(own, forward_walk=32, blocks=3),
        replace(own, warps=8),
        *fewer_rows,
    ]


def name_of(kernel: str) -> str:
    return f"flash_tensor_core_{kernel}<__nv_bfloat16, {SIZE}>"


def registers(tiles: Tiles, kernel: str) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, to which what has no register is spilled.

    From the cubin for sm_90. A cubin is an ELF file; its section .nv.info is a list of attributes, which cuobjdump
    shows by these names.
    """
    cubin = nvrtc.nvrtc_compile(tiles.source(), "sm_90", FILE.name, (name_of(kernel),))
    sections = struct.unpack_from("<Q", cubin, 0x28)[0]
    entry_bytes, count, of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, sections + i * entry_bytes) for i in range(count)]
    names = headers[of_names][4]
    found = {}
    for name, _, _, _, offset, size, *_ in headers:
        if cubin[names + name : cubin.index(b"\0", names + name)] != b".nv.info":
            continue
        at = offset
        while at < offset + size:
            form, attribute, length = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if form == 4:  # EIFMT_SVAL: `length` bytes follow, here the symbol and its value
                found[attribute] = struct.unpack_from("<II", cubin, at)[1] if length == 8 else None
                at += length
    eiattr_regcount, eiattr_frame_size = 0x2F, 0x11
    return found[eiattr_regcount], found[eiattr_frame_size]


def time_all(tried: list[Tiles]) -> None:
    """Milliseconds of each kernel on both shapes, and how far its results are from the file's own."""
    import gpu_device
    import ml_dtypes

    device = gpu_device.real_device()
    cupy = device.xp
    options = ("-std=c++17", f"-I{FILE.parent.parent}", f"-I{FILE.parent}")
    kernels = tuple(map(name_of, KERNELS))

    def compiled(tiles: Tiles) -> list:
        module = cupy.RawModule(code=tiles.source(), options=options, name_expressions=kernels)
        return [module.get_function(name) for name in kernels]

    with ThreadPoolExecutor() as pool:
        functions = dict(zip(tried, pool.map(compiled, tried), strict=True))
    for texts, length, heads, causal in SHAPES:
        print(
            f"\n{texts} x {length} x {heads} x {SIZE}{', causal' if causal else ''}: ms of {', '.join(KERNELS)}\n"
        )
        rows, bf16 = texts * length, np.dtype(ml_dtypes.bfloat16)
        q, k, v, dout = (device.normal(rows, heads * SIZE, dtype=bf16, seed=seed) for seed in range(4))
        starts = np.arange(0, rows, length)
        segments = cupy.asarray(np.stack([starts, starts + length], axis=1))
        given = (segments, segments, heads, SIZE**-0.5, causal)
        out, logsumexp = flash_tensor_core.forward(q, k, v, *given)
        dq, dk, dv = flash_tensor_core.backward(dout, q, k, v, out, logsumexp, *given)
        dots = (
            (dout.astype(np.float32) * out.astype(np.float32)).reshape(rows, heads, SIZE).sum(axis=2).T.copy()
        )
        sizes = np.array([texts, rows, rows, heads, heads, SIZE], np.int32)
        no_dropout = (np.uint32(0), np.float32(1), np.uint32(0), np.uint32(0), np.uint64(0))
        rest = (segments, segments, *sizes, np.float32(SIZE**-0.5), np.int32(causal), *no_dropout)
        for tiles, of_tiles in functions.items():
            cells = []
            for kernel, function in zip(KERNELS, of_tiles, strict=True):
                wanted = {"forward": (out, logsumexp), "dk_dv": (dk, dv), "dq": (dq,)}[kernel]
                results = tuple(cupy.zeros_like(array) for array in wanted)
                arrays = (q, k, v) if kernel == "forward" else (dout, q, k, v, logsumexp, dots)
                shared = tiles.shared_bytes(kernel)
                function.max_dynamic_shared_size_bytes = shared
                grid, block = (heads, rows // tiles.own_rows + texts), (32 * tiles.warps,)
                run = partial(function, grid, block, (*arrays, *results, *rest), shared_mem=shared)
                milliseconds = device.milliseconds(run)
                error = abs(results[0].astype(np.float32) - wanted[0].astype(np.float32)).max()
                cells.append(f"{milliseconds:.4f} ({function.num_regs} registers, error {float(error):.0e})")
            print(f"{tiles}: {', '.join(cells)}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registers", action="store_true", help="compile only, which needs no GPU")
    options = parser.parse_args(arguments)
    if not options.registers:
        time_all(candidates())
        return 0
    for tiles in candidates():
        cells = (
            f"{kernel} {count} ({spilled})"
            for kernel in KERNELS
            for count, spilled in [registers(tiles, kernel)]
        )
        print(f"{tiles}: {', '.join(cells)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
