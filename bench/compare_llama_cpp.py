#!/usr/bin/env python3
"""Measures kivi and llama.cpp side by side on this machine: the same model file, the same threads, runs interleaved.

  bench/compare_llama_cpp.py --llama-bench PATH --model FILE [--kivi build/release/bin/kivi] [--threads 2]
                             [--depths 0,4096,8192] [--repeats 3] [--json docs/measurements/FILE.json]

llama.cpp is not built here: point --llama-bench at its benchmark program. Every KV type that it has for a CPU is tried,
f16 with and without flash attention, and the best at each depth is what kivi is compared with.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA_TYPES = [("f16", 1), ("f16", 0), ("q8_0", 1), ("q4_0", 1)]  # KV type, flash attention
KIVI_TYPES = ["f16", "kivi4", "kivi2"]
N_TOKENS = 32  # decoded in a sample
N_PROMPT = 512  # of the prefill sample


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"compare_llama_cpp: {' '.join(map(str, command))}\n{result.stderr.strip()[-2000:]}")
    return result.stdout


def llama(args, kv, flash, depth, n_prompt=0):
    command = [args.llama_bench, "-m", args.model, "-t", args.threads, "-r", "1", "-o", "json", "-ctk", kv, "-ctv", kv,
               "-fa", flash, "-p", n_prompt, "-n", 0 if n_prompt else N_TOKENS, "-d", depth]
    (row,) = json.loads(run([str(x) for x in command]))
    return row["avg_ts"], row["build_commit"]


def kivi(args, kv, depth):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.json"
        run([args.kivi, "bench", "decode", "-m", args.model, "--threads", str(args.threads), "--kv", kv, "--depth",
             str(depth), "-n", str(N_TOKENS), "--repetitions", "1", "--json", out])
        return json.loads(out.read_text())


def machine():
    cpu = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith(("model name", "cpu family",
                                                                                               "model\t"))]
    return {"processor": " / ".join(dict.fromkeys(cpu)), "cores": os.cpu_count(), "system": platform.platform()}


def summary(samples):
    return {"best": max(samples), "median": statistics.median(samples), "samples": samples}


def measure(args):
    decode = {}  # (engine, kv, depth) -> samples
    prefill = {"llama.cpp": [], "kivi": []}
    commit = ""
    device = ""
    for repeat in range(args.repeats):
        rate, commit = llama(args, "f16", 1, 0, N_PROMPT)
        prefill["llama.cpp"].append(rate)
        prefill["kivi"].append(kivi(args, "f16", N_PROMPT)["results"][0]["prefill_tokens_per_s"])
        for depth in args.depths:
            for kv, flash in LLAMA_TYPES:
                name = kv if flash else f"{kv}, flash attention off"
                decode.setdefault(("llama.cpp", name, depth), []).append(llama(args, kv, flash, depth)[0])
            for kv in KIVI_TYPES:
                report = kivi(args, kv, depth)
                device = report["device"]
                decode.setdefault(("kivi", kv, depth), []).append(report["results"][0]["decode_tokens_per_s"])
            print(f"repeat {repeat + 1} of {args.repeats}, depth {depth} done", file=sys.stderr)
    return decode, prefill, commit, device


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kivi", default=str(ROOT / "build/release/bin/kivi"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=lambda text: [int(x) for x in text.split(",")], default=[0, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    decode, prefill, llama_commit, device = measure(args)
    report = {
        "what": "bench/compare_llama_cpp.py",
        "machine": machine(),
        "kivi": {"commit": run(["git", "-C", ROOT, "describe", "--always", "--dirty"]).strip(), "device": device},
        "llama.cpp": {"commit": llama_commit},
        "model": pathlib.Path(args.model).name,
        "threads": args.threads,
        "tokens_per_sample": N_TOKENS,
        "prefill_tokens": N_PROMPT,
        "prefill_tokens_per_s": {engine: summary(samples) for engine, samples in prefill.items()},
        "prefill_ratio": max(prefill["kivi"]) / max(prefill["llama.cpp"]),
        "decode_tokens_per_s": [{"engine": engine, "kv": kv, "depth": depth, **summary(samples)}
                                for (engine, kv, depth), samples in decode.items()],
        "decode_ratio_to_best_llama.cpp": [],
    }
    print(f"prefill of {N_PROMPT}: kivi {max(prefill['kivi']):.0f}, llama.cpp {max(prefill['llama.cpp']):.0f} tokens/s")
    for depth in args.depths:
        best = {kv: max(samples) for (engine, kv, d), samples in decode.items() if engine == "llama.cpp" and d == depth}
        peer = max(best, key=best.get)
        for kv in KIVI_TYPES:
            rate = max(decode[("kivi", kv, depth)])
            report["decode_ratio_to_best_llama.cpp"].append(
                {"depth": depth, "kv": kv, "llama.cpp": peer, "ratio": rate / best[peer]})
            print(f"depth {depth:6}: kivi {kv:6} {rate:7.1f} tokens/s, llama.cpp {peer} {best[peer]:7.1f}: "
                  f"{rate / best[peer]:.2f}x")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
