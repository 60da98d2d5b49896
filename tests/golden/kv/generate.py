#!/usr/bin/env python3
"""Writes the golden data of the packed format and of Algorithm 1 beside this script, from the paper and from
docs/packed-format.md alone: nothing here calls kivi. Needs NumPy 1.24 or later.

    python3 generate.py            writes the four files
    python3 generate.py --check    compares them with what it would write; exit code 1 if they differ

index.json     what the other files hold, in their order
quantiser.bin  for each family: inputs f32 [groups][n], scales and zeros binary16 [groups] each, words u32
               [groups][n * bits / 32], dequantised f32 [groups][n]
outputs.bin    for each run of each attention case: f32 [1 + n_decode][head_dim], the output of the last prompt token,
               then of each decoded one
pages.bin      for each attention case: the pages of its last run
All little-endian. The inputs of the attention cases are not stored: number() below defines them.
"""

import argparse
import json
import math
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
F32, F64 = np.float32, np.float64
HALF_MAX = F32(65504)
PAGE_TOKENS = 128
N_DECODE = 3
SOFTMAX_SCALE = 0.5  # sharp: a wrong key shows


# ---- the quantiser: groups are the last axis ----


def quantise(x, bits):
    """x [..., n] -> codes [..., n] u32, scale [...] f16, zero [...] f16. Every operation rounds to binary32."""
    top = F32(2**bits - 1)
    with np.errstate(all="ignore"):
        # fmin and fmax pass over NaN; adding +0 turns -0 into +0.
        low = np.clip(np.fmin.reduce(x, -1), -HALF_MAX, HALF_MAX) + F32(0)
        high = np.clip(np.fmax.reduce(x, -1), -HALF_MAX, HALF_MAX) + F32(0)
        low, high = (np.where(np.isnan(end), F32(0), end) for end in (low, high))
        scale = ((high - low) / top).astype(np.float16)
        zero = low.astype(np.float16)
        position = (x - zero.astype(F32)[..., None]) / scale.astype(F32)[..., None]
    assert position.dtype == F32
    no_code = np.isnan(position) | (scale == 0)[..., None]
    codes = np.rint(np.clip(np.where(no_code, F32(0), position), F32(0), top))  # rint: half to even
    return codes.astype(np.uint32), scale, zero


def dequantise(codes, scale, zero):
    return codes.astype(F32) * scale.astype(F32)[..., None] + zero.astype(F32)[..., None]


def pack_words(codes, bits):
    """codes [..., n] -> words [..., n * bits / 32], code 0 of a word in its low bits."""
    per_word = 32 // bits
    grouped = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, per_word)
    return np.bitwise_or.reduce(grouped << (np.arange(per_word, dtype=np.uint32) * np.uint32(bits)), axis=-1)


# ---- Algorithm 1 for one KV head ----


@dataclass
class Policy:
    sinks: int = 0
    keep: int = 0
    flush: int = 1

    def as_list(self):
        return [self.sinks, self.keep, self.flush]


class Side:
    """The keys or the values: sinks, packed rows, window. bits 0: nothing is ever packed."""

    def __init__(self, policy, bits, head_dim, group):
        self.policy, self.bits, self.head_dim, self.group = policy, bits, head_dim, group
        self.sinks, self.window = [], []
        self.codes, self.scales, self.zeros, self.packed_rows = [], [], [], []

    def append(self, row):
        (self.sinks if len(self.sinks) < self.policy.sinks else self.window).append(row)
        while self.bits and len(self.window) >= self.policy.keep + self.policy.flush:
            self.pack(np.stack(self.window[: self.policy.flush]))
            del self.window[: self.policy.flush]

    def rows(self):
        return np.stack(self.sinks + self.packed_rows + self.window)

    def n_packed(self):
        return len(self.packed_rows)


class Keys(Side):
    """Per channel: a group is `group` tokens of one channel."""

    def pack(self, rows):
        for first in range(0, len(rows), self.group):
            channels = rows[first : first + self.group].T
            codes, scale, zero = quantise(channels, self.bits)
            self.codes.append(codes)  # [D][G]
            self.scales.append(scale)
            self.zeros.append(zero)
            self.packed_rows += list(dequantise(codes, scale, zero).T)

    def page(self, index):
        if not self.bits:
            return b""
        per_page = PAGE_TOKENS // self.group
        mine = slice(index * per_page, (index + 1) * per_page)
        codes = fill(self.codes[mine], (per_page, self.head_dim, self.group), np.uint32)
        scales = fill(self.scales[mine], (per_page, self.head_dim), np.float16)
        zeros = fill(self.zeros[mine], (per_page, self.head_dim), np.float16)
        return little(pack_words(codes, self.bits)) + little(scales) + little(zeros)


class Values(Side):
    """Per token: a group is `group` channels of one token."""

    def pack(self, rows):
        for row in rows:
            codes, scale, zero = quantise(row.reshape(-1, self.group), self.bits)
            self.codes.append(codes.ravel())  # [D]
            self.scales.append(scale)
            self.zeros.append(zero)
            self.packed_rows.append(dequantise(codes, scale, zero).ravel())

    def page(self, index):
        if not self.bits:
            return b""
        mine = slice(index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS)
        groups = self.head_dim // self.group
        codes = fill(self.codes[mine], (PAGE_TOKENS, self.head_dim), np.uint32)
        scales = fill(self.scales[mine], (PAGE_TOKENS, groups), np.float16)
        zeros = fill(self.zeros[mine], (PAGE_TOKENS, groups), np.float16)
        return little(pack_words(codes, self.bits)) + little(scales.T) + little(zeros.T)


def fill(parts, shape, dtype):
    """The parts, one for each index of the first dimension, then zeros up to the shape."""
    out = np.zeros(shape, dtype)
    for i, part in enumerate(parts):
        out[i] = part
    return out


def little(array):
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def attend(query, keys, values):
    """softmax(q K^T * scale) V in binary64, rounded to binary32 at the end."""
    scores = (keys.astype(F64) * query.astype(F64)).sum(axis=1) * SOFTMAX_SCALE
    weights = np.exp(scores - scores.max())
    return ((weights[:, None] * values.astype(F64)).sum(axis=0) / weights.sum()).astype(F32)


@dataclass
class Case:
    name: str
    head_dim: int
    key_bits: int
    value_bits: int
    group: int
    key_policy: Policy
    value_policy: Policy
    lengths: list
    dtype: str = "f16"
    seed: int = 0

    @property
    def value_group(self):
        return math.gcd(self.group, self.head_dim)

    def describe(self):
        return {
            "name": self.name, "head_dim": self.head_dim, "key_bits": self.key_bits, "value_bits": self.value_bits,
            "key_group": self.group, "value_group": self.value_group, "key_policy": self.key_policy.as_list(),
            "value_policy": self.value_policy.as_list(), "dtype": self.dtype, "seed": self.seed,
        }  # fmt: skip


def splitmix64(n):
    with np.errstate(over="ignore"):
        z = (n + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def number(seed, side, token, channel):
    """About normal, exact in binary16: side 0 queries, 1 keys, 2 values. Every 13th channel of the keys is loud, channel
    7 of them constant; every 16th row of the values is constant."""
    bits = splitmix64((np.uint64(seed) << np.uint64(32)) + np.uint64(side << 24) + (token << np.uint64(8)) + channel)
    total = sum((bits >> np.uint64(8 * i)) & np.uint64(255) for i in range(4)).astype(np.int64) - 510
    x = total.astype(F32) / F32(256)
    if side == 1:
        x = np.where(channel % 13 == 5, x * F32(8), x)
        x = np.where(channel == 7, F32(0.5), x)
    if side == 2:
        x = np.where(token % 16 == 9, F32(-0.75), x)
    return x


def cut_to_bfloat16(x):
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)


def rows(case, side, n):
    token, channel = np.meshgrid(np.arange(n, dtype=np.uint64), np.arange(case.head_dim, dtype=np.uint64), indexing="ij")
    x = number(case.seed, side, token, channel)
    return cut_to_bfloat16(x) if case.dtype == "bf16" else x


def run(case, length):
    """A prompt of `length` tokens, then N_DECODE tokens one by one: (outputs [1 + N_DECODE][D], keys, values)."""
    n = length + N_DECODE
    queries, new_keys, new_values = (rows(case, side, n) for side in range(3))
    keys = Keys(case.key_policy, case.key_bits, case.head_dim, case.group)
    values = Values(case.value_policy, case.value_bits, case.head_dim, case.value_group)
    # Prefill: attention over full-precision rows; then the rows are stored.
    outputs = [attend(queries[length - 1], new_keys[:length], new_values[:length])]
    for t in range(length):
        keys.append(new_keys[t])
        values.append(new_values[t])
    # Decoding: attend over what is stored and the new token, then store and flush.
    for t in range(length, n):
        seen_keys = np.concatenate([keys.rows(), new_keys[t : t + 1]])
        seen_values = np.concatenate([values.rows(), new_values[t : t + 1]])
        outputs.append(attend(queries[t], seen_keys, seen_values))
        keys.append(new_keys[t])
        values.append(new_values[t])
    return np.stack(outputs), keys, values


def blocks(keys, values):
    n_pages = -(-max(keys.n_packed(), values.n_packed()) // PAGE_TOKENS)
    out = b""
    for page in range(n_pages):
        block = keys.page(page) + values.page(page)
        out += block + bytes(-len(block) % 64)
    return out


def paper(residual):
    return Policy(0, 0, residual), Policy(0, residual, 1)


def lengths(group, residual):
    near = [group - 1, group, group + 1, residual - 1, residual, residual + 1]
    return sorted({1, 200, *near})


def attention_cases():
    cases = [
        Case("kivi2", 64, 2, 2, 32, *paper(128), lengths(32, 128)),
        Case("kivi2, wide head", 128, 2, 2, 32, *paper(128), lengths(32, 128)),
        Case("kivi4", 64, 4, 4, 32, *paper(128), lengths(32, 128)),
        Case("K4V2, 4 sinks, R 64", 96, 4, 2, 32, Policy(4, 0, 64), Policy(4, 64, 1), lengths(32, 64)),
        Case("K2V8, G 16, R 16", 64, 2, 8, 16, *paper(16), lengths(16, 16)),
        Case("K8V4, G 64, R 64, 17 sinks, narrow head", 32, 8, 4, 64, Policy(17, 0, 64), Policy(17, 64, 1), lengths(64, 64)),
        Case("G 64, R 64", 128, 2, 2, 64, *paper(64), lengths(64, 64)),
        Case("G 128, bfloat16", 96, 2, 2, 128, *paper(128), lengths(128, 128), dtype="bf16"),
        Case("keep and flush of both", 64, 2, 2, 32, Policy(5, 64, 32), Policy(5, 40, 8), lengths(32, 96)),
        Case("no window to speak of", 64, 2, 4, 32, Policy(0, 0, 32), Policy(0, 0, 1), lengths(32, 32)),
        Case("keys only", 64, 2, 0, 32, Policy(0, 0, 128), Policy(), [33, 128, 200]),
        Case("values only", 64, 0, 2, 32, Policy(3), Policy(3, 128, 1), [33, 129, 200]),
    ]
    for i, case in enumerate(cases):
        case.seed = 100 + i
    return cases


# ---- groups for the quantiser ----


class Noise:
    """Numbers that are the same on every machine and in every version of NumPy."""

    def __init__(self, seed):
        self.counter = seed << 32

    def bits(self, n):
        self.counter += n
        return splitmix64(np.arange(self.counter - n, self.counter, dtype=np.uint64))

    def below(self, limit, n):
        return (self.bits(n) % np.uint64(limit)).astype(np.int64)

    def normal(self, n):
        """Mean 0, deviation 1, within +-3.5: the sum of four uniform numbers."""
        bits = self.bits(n)
        return (sum((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)).astype(F64) - 131070) / 37837


def ties(bits, n, noise):
    """Halves between two codes at scales that are powers of two; the ends first, so that scale and zero are exact."""
    top = 2**bits - 1
    groups = []
    for step, zero in ((1.0, 0.0), (0.25, -3.0), (2.0**-10, 1.0), (8.0, -64.0)):
        halves = noise.below(top, n) + 0.5
        halves[:2] = 0, top
        groups.append(halves * step + zero)
    return groups


def families(bits):
    """name -> [groups][n] of numbers."""
    noise = Noise(bits)
    unit = 2.0**-24  # the smallest binary16
    alternating = np.where(np.arange(16) % 2, -65504.0, 65504.0)
    return {
        "normal": [noise.normal(32).astype(np.float16) * scale + shift for scale, shift in
                   ((1, 0), (30, 5), (1e-3, 0), (1e3, -4e3), (0.1, 100))],
        "ties": ties(bits, 64, noise),
        "long": [noise.normal(128)],
        "constant": [np.full(16, x) for x in (0.0, -0.0, 1.5, -65504.0, unit, 0.1, 1e9, -np.inf)],
        "negative": [-np.abs(noise.normal(32)) - 1],
        "subnormal": [noise.below(n + 1, 16) * unit + zero for n, zero in
                      ((1, 0), (2, 0), (3, -unit), (40, 0), (700, 0.5))],
        "beyond binary16": [alternating, np.linspace(-65504, 65504, 16), noise.normal(16) * 1e5,
                            noise.normal(16) * 1e30, np.append(noise.normal(15), np.inf)],
        "bfloat16": [cut_to_bfloat16((noise.normal(32) * scale).astype(F32)) for scale in (1, 1e-6, 300)],
        "NaN and signed zeros": [np.where(np.arange(16) % 3 == 0, np.nan, np.arange(16)), np.full(16, np.nan),
                                 np.tile([0.0, -0.0], 8), np.tile([-0.0, 0.0, 3.0, -0.0], 4)],
    }  # fmt: skip


def quantiser_data():
    index, data = [], b""
    for bits in (2, 4, 8):
        for name, groups in families(bits).items():
            x = np.stack(groups).astype(F32)
            codes, scale, zero = quantise(x, bits)
            index.append({"name": name, "bits": bits, "groups": x.shape[0], "n": x.shape[1]})
            for array in (x, scale, zero, pack_words(codes, bits), dequantise(codes, scale, zero)):
                data += little(array)
    return index, data


def attention_data():
    index, all_pages, outputs = [], b"", []
    for case in attention_cases():
        runs = []
        for length in case.lengths:
            out, keys, values = run(case, length)
            pages = blocks(keys, values)
            outputs.append(out.ravel())
            runs.append({
                "n_prompt": length, "n_packed": [keys.n_packed(), values.n_packed()], "pages_crc32": zlib.crc32(pages),
                "keys_crc32": zlib.crc32(little(keys.rows())), "values_crc32": zlib.crc32(little(values.rows())),
                "pages_bytes": len(pages),
            })  # fmt: skip
        all_pages += pages
        index.append({**case.describe(), "runs": runs})
    return index, all_pages, np.concatenate(outputs)


def generate():
    """{file name: bytes}."""
    quantiser, groups = quantiser_data()
    attention, pages, outputs = attention_data()
    constants = {"n_decode": N_DECODE, "softmax_scale": SOFTMAX_SCALE}
    text = "{\n" + ",\n".join(
        [f'"{name}": {json.dumps(value)}' for name, value in constants.items()]
        + [f'"{name}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]"
           for name, entries in (("quantiser", quantiser), ("attention", attention))]
    ) + "\n}\n"  # fmt: skip
    return {"index.json": text.encode(), "quantiser.bin": groups, "outputs.bin": little(outputs),
            "pages.bin": pages}  # fmt: skip


def same(name, committed, generated):
    if name != "outputs.bin" or len(committed) != len(generated):
        return committed == generated
    # exp differs in the last bit between machines.
    old, new = (np.frombuffer(data, "<f4") for data in (committed, generated))
    return bool(np.allclose(old, new, rtol=0, atol=1e-6))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    wrong = []
    for name, data in generate().items():
        path = HERE / name
        if not check:
            path.write_bytes(data)
        elif not path.exists() or not same(name, path.read_bytes(), data):
            wrong.append(name)
    if wrong:
        sys.exit(f"{', '.join(wrong)}: not what generate.py writes; run it without --check and look at the difference")


if __name__ == "__main__":
    main()
