#!/usr/bin/env python3
"""Decode attention of kivi beside FlashInfer's on the same shapes, on this machine's GPU, in one run.

  bench/gpu/compare_peers.py (--kivi build/release/bin/kivi | --attention FILE) [--shapes S1,S2] [--kernels DIR]
                             [--json FILE]
  bench/gpu/compare_peers.py --build DIR

FlashInfer reads 16-bit (bf16) and 8-bit (fp8 e4m3) caches in pages of 16 tokens, with tensor cores and without: the
faster one counts. It needs its Python packages (bench/gpu/README.md names them) and compiles its kernels at first use:
about 2 minutes on 16 cores. --build does that where there is no GPU, 10 minutes on one core, and --kernels uses what it
made.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = 16
COLD_BYTES = 256 << 20  # calls go round as many layers as hold this: several times an L2 cache
SAMPLE_SECONDS = 0.02
N_SAMPLES = 7
SHAPE_KEYS = ("batch", "tokens", "q_heads", "kv_heads", "head_dim")


class Peer:
    """A type of cache that FlashInfer reads, and the kernels for it."""

    def __init__(self, name, dtype, torch):
        self.name, self.dtype, self.torch = name, dtype, torch

    def kernels(self, head_dim):
        from flashinfer.jit import gen_batch_decode_module, gen_batch_prefill_module
        common = (self.torch.bfloat16, self.dtype, self.torch.bfloat16, self.torch.int32, head_dim, head_dim, 0, False,
                  False)
        # Decoding on tensor cores is its prefill kernel.
        return [gen_batch_decode_module(*common), gen_batch_prefill_module("fa2", *common, False)]


def peers():
    import torch
    return [Peer("bf16", torch.bfloat16, torch), Peer("fp8", torch.float8_e4m3fn, torch)]


def compile_kernels(head_dims):
    from flashinfer.jit import build_jit_specs
    specs = [spec for peer in peers() for head_dim in head_dims for spec in peer.kernels(head_dim)]
    build_jit_specs(specs)
    return specs


def build(directory):
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    for spec in compile_kernels([128]):
        target = directory / spec.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(spec.jit_library_path, target / f"{spec.name}.so")
        print(target / f"{spec.name}.so")


class Cache:
    """Layers of a paged cache of random numbers, pages in a random order, and a query."""

    def __init__(self, peer, shape):
        torch = peer.torch
        self.shape, self.peer = shape, peer
        per_sequence = -(-shape["tokens"] // PAGE)
        n_pages = shape["batch"] * per_sequence
        size = (n_pages, 2, PAGE, shape["kv_heads"], shape["head_dim"])
        self.bytes = shape["batch"] * shape["tokens"] * 2 * shape["kv_heads"] * shape["head_dim"] * peer.dtype.itemsize
        self.layers = [self.random(size) for _ in range(-(-COLD_BYTES // self.bytes))]
        self.indptr = torch.arange(shape["batch"] + 1, dtype=torch.int32) * per_sequence
        self.indices = torch.randperm(n_pages, dtype=torch.int32, device="cuda")
        self.last_page = torch.full((shape["batch"],), (shape["tokens"] - 1) % PAGE + 1, dtype=torch.int32)
        self.q = torch.randn(shape["batch"], shape["q_heads"], shape["head_dim"], device="cuda").to(torch.bfloat16)
        self.out = torch.empty_like(self.q)

    def random(self, size):
        """Page by page: there may be no room for the same in 32 bits."""
        torch = self.peer.torch
        tensor = torch.empty(size, dtype=self.peer.dtype, device="cuda")
        for part in tensor.split(4096):
            part.copy_(torch.randn(part.shape, dtype=torch.bfloat16, device="cuda"))
        return tensor

    def attention(self, tensor_cores):
        """A function of a layer's number."""
        import flashinfer
        torch, shape = self.peer.torch, self.shape
        workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores,
                                                                backend="fa2")
        wrapper.plan(self.indptr, self.indices, self.last_page, shape["q_heads"], shape["kv_heads"], shape["head_dim"],
                     PAGE, q_data_type=torch.bfloat16, kv_data_type=self.peer.dtype)
        return lambda layer: wrapper.run(self.q, self.layers[layer], out=self.out)

    def check(self):
        out = self.out.float()
        if not bool(out.isfinite().all()) or float(out.std()) == 0:
            raise RuntimeError("its result cannot be right")


def microseconds(torch, call, n_layers):
    """Median time of a call, many of them in a CUDA graph, going round the layers."""
    def elapsed(run):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    def calls(n):
        for i in range(n):
            call(i % n_layers)

    calls(n_layers)
    seconds = elapsed(lambda: calls(n_layers)) / n_layers
    n = n_layers * max(1, min(1024, round(SAMPLE_SECONDS / seconds)) // n_layers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls(n)
    graph.replay()
    n_replays = max(1, round(SAMPLE_SECONDS / (elapsed(graph.replay))))
    samples = [elapsed(lambda: [graph.replay() for _ in range(n_replays)]) for _ in range(N_SAMPLES)]
    return 1e6 * statistics.median(samples) / (n * n_replays)


def measure(peer, shape):
    """{"microseconds","gb_s","tensor_cores","other_microseconds"} of the faster mode, or {"error"}."""
    torch = peer.torch
    times, errors = {}, []
    cache = Cache(peer, shape)
    for tensor_cores in (False, True):
        try:
            times[tensor_cores] = microseconds(torch, cache.attention(tensor_cores), len(cache.layers))
            cache.check()
        except (RuntimeError, ValueError, TypeError) as error:
            times.pop(tensor_cores, None)
            errors.append(f"tensor cores {tensor_cores}: {str(error).strip()[:500]}")
    n_bytes, n_layers = cache.bytes, len(cache.layers)
    del cache
    torch.cuda.empty_cache()
    if not times:
        return {"error": "; ".join(errors)}
    best = min(times, key=times.get)
    row = {"microseconds": times[best], "bytes": n_bytes, "gb_s": 1e-3 * n_bytes / times[best], "tensor_cores": best,
           "layers": n_layers, "microseconds_by_tensor_cores": {str(key).lower(): us for key, us in times.items()}}
    return {**row, "errors": errors} if errors else row


def measure_peers(shapes):
    import flashinfer
    import torch
    compile_kernels(sorted({shape["head_dim"] for shape in shapes}))
    rows = []
    for shape in shapes:
        rows.append({**shape, **{peer.name: measure(peer, shape) for peer in peers()}})
        print(describe(shape), *(f"{peer.name} {rows[-1][peer.name].get('microseconds', float('nan')):.1f} us"
                                 for peer in peers()), file=sys.stderr, flush=True)
    return {"device": torch.cuda.get_device_name(), "flashinfer": flashinfer.__version__, "torch": torch.__version__,
            "page_tokens": PAGE, "shapes": rows}


def describe(shape):
    return "x".join(str(shape[key]) for key in SHAPE_KEYS)


def shape_of(row):
    return {key: row[key] for key in SHAPE_KEYS}


def ratios(attention, measured):
    """Each of kivi's results of equal lengths beside both peers at its shape: how many times as fast it is."""
    by_shape = {describe(row): row for row in measured["shapes"]}
    rows = []
    for ours in attention["results"]:
        if ours["ragged"]:
            continue
        row = {"kv": ours["kv"], **shape_of(ours), "microseconds": ours["microseconds"]}
        for name in ("bf16", "fp8"):
            peer = by_shape[describe(ours)][name]
            row[f"times_flashinfer_{name}"] = peer["microseconds"] / ours["microseconds"] if "error" not in peer else None
        rows.append(row)
    return rows


def attention_of(arguments):
    if arguments.attention:
        return json.loads(arguments.attention.read_text())
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "attention.json"
        command = [arguments.kivi, "bench", "attention", "--device", "cuda", "--json", out]
        if arguments.shapes:
            command += ["--shapes", arguments.shapes]
        subprocess.run([str(part) for part in command], check=True)
        return json.loads(out.read_text())


def print_table(rows):
    print(f"{'batch x tokens, heads':28}{'KV cache':>10}{'us':>9}{'x bf16':>8}{'x fp8':>8}")
    for row in rows:
        times = "".join(f"{row[key]:8.2f}" if row[key] else f"{'-':>8}"
                        for key in ("times_flashinfer_bf16", "times_flashinfer_fp8"))
        shape = f"{row['batch']} x {row['tokens']}, {row['q_heads']}/{row['kv_heads']}"
        print(f"{shape:28}{row['kv']:>10}{row['microseconds']:9.1f}{times}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kivi", type=Path, help="the executable: its attention is measured first")
    what.add_argument("--attention", type=Path, help="what `kivi bench attention --json` has just written here")
    what.add_argument("--build", type=Path, metavar="DIR", help="compile FlashInfer's kernels into DIR and stop")
    parser.add_argument("--shapes", help="as `kivi bench attention` takes them, for --kivi; default: its eight")
    parser.add_argument("--kernels", type=Path, metavar="DIR", help="what --build has made")
    parser.add_argument("--json", type=Path, help="where the result goes")
    arguments = parser.parse_args()
    if arguments.build:
        return build(arguments.build)
    if arguments.kernels:
        import flashinfer.jit.env
        flashinfer.jit.env.FLASHINFER_AOT_DIR = arguments.kernels.resolve()
    attention = attention_of(arguments)
    shapes = list({describe(row): shape_of(row) for row in attention["results"]}.values())
    measured = measure_peers(shapes)
    rows = ratios(attention, measured)
    print_table(rows)
    if arguments.json:
        report = {**measured, "ratios": rows, "attention": attention}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    errors = [row[name]["error"] for row in measured["shapes"] for name in ("bf16", "fp8") if "error" in row[name]]
    if len(errors) == 2 * len(shapes):
        sys.exit(f"compare_peers: FlashInfer ran on no shape: {errors[0]}")


if __name__ == "__main__":
    main()
