"""What a micro-kernel declares about itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["F32", "S8", "S16", "U8", "MicroKernel", "Operands"]


@dataclass(frozen=True)
class Operands:
    """How data and weights lie in memory, in words of four bytes.

    Attributes
    ----------
    name : str
    data, weights, sums : str
        dtypes.
    per_word : int
        Values in a word, which one instruction multiplies and adds.
    shift : int or None
        What is added to an int8 value so that it fits `data`; a layer corrects its sums by
        ``shift * sum(weights)``. None: the offset is subtracted instead, and a real zero is 0.
    """

    name: str
    data: str
    weights: str
    sums: str
    per_word: int
    shift: int | None = None

    def stored(self, offset: int) -> int:
        """Return what is added to an int8 value of this offset when it is stored."""
        return -offset if self.shift is None else self.shift

    def zero(self, offset: int) -> int:
        """Return how a real zero of this offset is stored."""
        return offset + self.stored(offset)

    @property
    def llvm(self) -> str:
        """The type of one value of data in LLVM text."""
        return "float" if self.data == "float32" else f"i{8 * self.itemsize}"

    @property
    def lowest(self) -> float:
        """The lowest value of data; of float32 the lowest finite one, from which Caffe starts."""
        kind = np.dtype(self.data)
        return float(np.finfo(kind).min if kind.kind == "f" else np.iinfo(kind).min)

    @property
    def itemsize(self) -> int:
        """Bytes of one value of data."""
        return np.dtype(self.data).itemsize


#: float32; one value a word.
F32 = Operands("f32f32", "float32", "float32", "float32", 1)
#: 8-bit values less their offset, which needs 9 bits, and weights, both as int16.
S16 = Operands("s16s16", "int16", "int16", "int32", 2)
#: int8 values as they are, and int8 weights.
S8 = Operands("s8s8", "int8", "int8", "int32", 4, shift=0)
#: int8 values plus 128 as unsigned bytes, and int8 weights.
U8 = Operands("u8s8", "uint8", "int8", "int32", 4, shift=128)


@dataclass(frozen=True)
class MicroKernel:
    """One way to multiply and add, and the tile that suits it.

    Attributes
    ----------
    isa : str
        Name of the instruction set.
    operands : Operands
    lanes : int
        Sums in one vector.
    rows : int
        Rows of a tile: ``rows * 2`` vectors of sums, two of weights and one of data should
        fit the registers.
    multiply_add : tuple of (str, str)
        Lines of LLVM text as (name of the value, instruction). ``{sums}``, ``{data}`` and
        ``{weights}`` are vectors of `lanes` sums and words; the last line is the new sums.
    declarations : str
        LLVM text of the intrinsics used.
    features : tuple of str
        What a processor needs to run it, by LLVM's names.
    excluded : tuple of str
        Features that its code leaves alone where they are. LLVM would take other instructions:
        one of 512 bits slows down those around it, and ``CAFFE_QUANT_ISA=avx2`` is to show what a
        processor does that has no more.
    compress : str
        LLVM's function that moves the lanes of a mask to the front of a vector of int32; empty
        where there is none, or none that is fast.
    instruction : str
        The mnemonic that its machine code must have; empty if it promises none.
    cpu, triple : str
        A processor, by LLVM's names, whose assembly shows the instruction.
    matrix : bool
        Products over 16 words and more are made by whole matrices (`kernels.cpu.codegen.matrix`);
        `multiply_add` serves the others, and channels alone.
    priority : int
        Of two that a processor runs, that with the higher priority is faster.
    """

    isa: str
    operands: Operands
    lanes: int
    rows: int
    multiply_add: tuple[tuple[str, str], ...]
    declarations: str = ""
    features: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    compress: str = ""
    instruction: str = ""
    cpu: str = "x86-64"
    triple: str = "x86_64-unknown-linux-gnu"
    matrix: bool = False
    priority: int = 0

    @property
    def columns(self) -> int:
        """Outputs of a tile."""
        return 2 * self.lanes

    @property
    def words(self) -> int:
        """Words that are multiplied together: weights are filled up to a multiple with zeros."""
        return 16 if self.matrix else 1

    @property
    def registers(self) -> int:
        """Vectors that the registers hold, as `rows` shows it: 16 or 32."""
        return 16 if self.rows <= 6 else 32

    @property
    def tail_rows(self) -> int:
        """Rows of the smaller tile at the end."""
        return self.rows // 2

    @property
    def name(self) -> str:
        """The contract: operands, tile, instruction set."""
        return f"{self.operands.name}_tile_{self.rows}x{self.columns}_{self.isa}"
