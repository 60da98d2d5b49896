#!/usr/bin/env python3
"""Plots a batch sweep: throughput and peak memory against the batch, a line for each KV cache.

  bench/gpu/plot_batch_sweep.py FILE --out sweep.png

FILE is what kivi bench throughput --batch-sweep --json wrote, or a report of tools/gpu-session with the section sweep.
Needs matplotlib. The ending of the output chooses its kind: png, svg, pdf.
"""

import argparse
import json
import sys
from pathlib import Path

GIB = 1 << 30


def read_sweep(path):
    report = json.loads(path.read_text())
    sweep = report["sections"]["sweep"] if "sections" in report else report
    if not sweep.get("results"):
        sys.exit(f"plot_batch_sweep: {path}: holds no results of a sweep")
    return sweep


def lines_of(results):
    """The results of each KV cache, in the order of the file, by batch."""
    lines = {}
    for row in results:
        lines.setdefault(row["kv"], []).append(row)
    return {kv: sorted(rows, key=lambda row: row["requests"]) for kv, rows in lines.items()}


def plot(sweep, pyplot):
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for kv, rows in lines_of(sweep["results"]).items():
        batches = [row["requests"] for row in rows]
        style = {"label": kv, "marker": "o", "markersize": 4}
        speed.plot(batches, [row["output_tokens_per_s"] for row in rows], **style)
        memory.plot(batches, [row["peak_memory_bytes"] / GIB for row in rows], **style)
    for axes, what in (speed, "output tokens/s"), (memory, "peak memory, GiB"):
        axes.set(xlabel="batch", ylabel=what, ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
    speed.legend()
    row = sweep["results"][0]
    prompts = "" if sweep.get("prompts_computed", True) else ", prompts not computed"
    figure.suptitle(f"{sweep['model']}: {row['prompt']} + {row['output']} tokens{prompts}\n{sweep['device_detail']}",
                    fontsize=9)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_batch_sweep: matplotlib is missing; install it (Debian: apt install python3-matplotlib)")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    plot(read_sweep(arguments.file), pyplot).savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
