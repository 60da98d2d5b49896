#!/usr/bin/env python3
"""Writes the GGUF files beside this script with PyPI gguf (0.19.0), an implementation independent of kivi's.

formats.gguf: per weight format a tensor "<FORMAT>" of random bits and an F32 tensor "<FORMAT>.values", what gguf
dequantises it to. metadata.gguf: a value of every metadata type; the test spells out what it must read.

    pip install gguf==0.19.0 && python3 make_golden.py
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

HERE = Path(__file__).parent
ROWS, COLS = 2, 512

# Byte offsets of the binary16 numbers in a block. They are drawn apart: random bits would give infinities and NaNs.
HALVES = {
    Type.F16: [0], Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}  # fmt: skip


def random_halves(rng, n):
    """Both signs, all magnitudes, every tenth subnormal."""
    exponents = np.where(rng.random(n) < 0.1, 0, rng.integers(1, 31, n))
    bits = rng.integers(0, 2, n) << 15 | exponents << 10 | rng.integers(0, 1024, n)
    return bits.astype(np.uint16)


def random_rows(rng, qtype):
    """[ROWS, bytes of a row], every bit of the codes and scales at random."""
    if qtype in (Type.F32, Type.BF16):
        values = rng.standard_normal((ROWS, COLS)).astype(np.float32)
        return gguf.quants.quantize(values, qtype).view(np.uint8).reshape(ROWS, -1)
    elements, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (ROWS * COLS // elements, size), dtype=np.uint8)
    for at in HALVES[qtype]:
        blocks[:, at : at + 2] = random_halves(rng, len(blocks)).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_formats():
    rng = np.random.default_rng(20240)
    writer = gguf.GGUFWriter(HERE / "formats.gguf", "none")
    for qtype in (Type.F32, Type.BF16, *HALVES):
        rows = random_rows(rng, qtype)
        values = gguf.quants.dequantize(rows, qtype).astype(np.float32).reshape(ROWS, COLS)
        assert np.isfinite(values).all()
        # The writer takes F32 and F16 as arrays of their own type, the others as bytes.
        plain = {Type.F32: np.float32, Type.F16: np.float16}.get(qtype)
        writer.add_tensor(qtype.name, rows.view(plain) if plain else rows, raw_dtype=None if plain else qtype)
        writer.add_tensor(f"{qtype.name}.values", values)
    finish(writer)


def write_metadata():
    scalars = {
        Value.UINT8: 200, Value.INT8: -100, Value.UINT16: 60000, Value.INT16: -30000, Value.UINT32: 4000000000,
        Value.INT32: -2000000000, Value.UINT64: 2**64 - 1, Value.INT64: -(2**63), Value.FLOAT32: 0.5,
        Value.FLOAT64: 0.1, Value.BOOL: True, Value.STRING: "gr\u00fc\u00df",
    }  # fmt: skip
    writer = gguf.GGUFWriter(HERE / "metadata.gguf", "none")
    writer.add_custom_alignment(128)
    for vtype, value in scalars.items():
        writer.add_key_value(f"scalar.{vtype.name.lower()}", value, vtype)
        if vtype != Value.UINT64:  # beyond 2^63 - 1, which is no array element
            writer.add_key_value(f"array.{vtype.name.lower()}", [value] * 3, Value.ARRAY, vtype)
    writer.add_key_value("array.uint64", [0, 2**63 - 1], Value.ARRAY, Value.UINT64)
    writer.add_tensor("cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    writer.add_tensor("vector", np.array([1.5, -2.5], dtype=np.float32))
    finish(writer)


if __name__ == "__main__":
    write_formats()
    write_metadata()
