#!/usr/bin/env python3
"""End-to-end tests: the kivi executable ($KIVI) on a real model. e2e_test.py [GROUP]..."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIVI = os.environ.get("KIVI", str(ROOT / "build/dev/bin/kivi"))
MODEL = str(ROOT / "models/smollm2-135m.gguf")
TEXT = str(ROOT / "data/wikitext-2-excerpt.txt")
LONG_PROMPT = str(ROOT / "data/demo-prompt.txt")
# Bits per element of SmolLM2's packed keys and values.
PRESETS = {"f16": 16, "kivi4": 5, "kivi2": 3,
           "kivi-l": (4 + 3 + 16.25 / 128 + 8 / 64) / 2,
           "kivi-m": (4 + 2 + 16.25 / 128 + 8 / 64) / 2,
           "kivi-s": (3 + 2 + 16.25 / 128 + 8 / 64) / 2}
# SmolLM2's keys and values of one token: 30 layers, 3 KV heads of 64, two sides.
ELEMENTS_PER_TOKEN = 30 * 3 * 64 * 2


def kivi(*args, stdin="", env=None, **options):
    command = [KIVI, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600,
                          env={**os.environ, **(env or {})}, **options)


class Case(unittest.TestCase):
    def ok(self, *args, **options):
        result = kivi(*args, **options)
        self.assertEqual(result.returncode, 0, f"{args}\n{result.stderr}")
        return result

    def refused(self, code, fragments, *args, **options):
        """The command fails with one line that holds the fragments, and writes nothing to standard output."""
        result = kivi(*args, **options)
        with self.subTest(args=args):
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertEqual(result.stdout, "")
            self.assertRegex(result.stderr, r"\Akivi: [^\n]+\n\Z")
            for fragment in fragments:
                self.assertIn(fragment, result.stderr)

    def stats(self, stderr):
        """The numbers of --stats."""
        found = re.search(r"prefill [\d.]+ tokens/s \((\d+) tokens\), decode [\d.]+ tokens/s \((\d+) tokens\)\n"
                          r"KV cache \S+: ([\d.]+) bits per element; packed (\d+) B, window (\d+) B, slack (\d+) B, "
                          r"total (\d+) B", stderr)
        self.assertIsNotNone(found, stderr)
        keys = ["prefill", "decode", "bits", "packed", "window", "slack", "total"]
        return {key: float(value) for key, value in zip(keys, found.groups())}


class Run(Case):
    def test_answers_under_every_preset(self):
        for kv in PRESETS:
            result = self.ok("run", "-m", MODEL, "-p", "What is the capital of France?", "-n", 12, "--kv", kv)
            self.assertIn("Paris", result.stdout, kv)
            self.assertEqual(result.stderr, "")

    def test_raw_continues_the_prompt(self):
        result = self.ok("run", "-m", MODEL, "--raw", "-p", "The capital of France is", "-n", 3, "--kv", "f16")
        self.assertTrue(result.stdout.startswith(" Paris"), result.stdout)

    def test_greedy_does_not_depend_on_threads_or_time(self):
        outputs = {self.ok("run", "-m", MODEL, "-p", "Name three fruits.", "-n", 24, "--threads", threads).stdout
                   for threads in (1, 2, 2)}
        self.assertEqual(len(outputs), 1, outputs)

    def test_seed_fixes_a_sampled_answer(self):
        def sample(seed):
            return self.ok("run", "-m", MODEL, "-p", "Tell me a story.", "-n", 24, "--temperature", 1.5, "--top-k", 0,
                           "--top-p", 1, "--min-p", 0, "--seed", seed).stdout
        self.assertEqual(sample(1), sample(1))
        self.assertNotEqual(sample(1), sample(2))

    def test_stats_count_tokens_and_bytes(self):
        n_prompt = {}
        for kv, packed_bits in ("f16", 16), ("kivi4", 5), ("kivi2", 3):
            result = self.ok("run", "-m", MODEL, "-f", LONG_PROMPT, "-n", 5, "--kv", kv, "--stats")
            stats = self.stats(result.stderr)
            n_prompt[kv] = stats["prefill"]
            n_tokens = stats["prefill"] + stats["decode"]
            self.assertGreater(n_tokens, 800)
            self.assertEqual(stats["decode"], 4)  # the fifth token is not in the cache
            self.assertEqual(stats["packed"] + stats["window"] + stats["slack"], stats["total"])
            if kv == "f16":
                self.assertEqual(stats["window"], n_tokens * ELEMENTS_PER_TOKEN * 2)
                continue
            # Keys: packed 128 at a time. Values: all but the newest 128.
            n_keys, n_values = n_tokens // 128 * 128, n_tokens - 128
            self.assertEqual(stats["packed"], (n_keys + n_values) * ELEMENTS_PER_TOKEN / 2 * packed_bits / 8)
            self.assertEqual(stats["window"], (2 * n_tokens - n_keys - n_values) * ELEMENTS_PER_TOKEN)
        self.assertEqual(len(set(n_prompt.values())), 1)

    def test_options_change_a_preset(self):
        def bits(*options):
            result = self.ok("run", "-m", MODEL, "-f", LONG_PROMPT, "-n", 2, "--stats", *options)
            return self.stats(result.stderr)["bits"]
        plain = bits("--kv", "kivi2")
        self.assertLess(bits("--kv", "kivi2", "--residual", 32), plain)
        self.assertGreater(bits("--kv", "kivi2", "--key-bits", 4), plain)
        self.assertEqual(bits("--kv", "kivi2", "--sinks", 4), bits("--kv", "kivi2:sinks=4"))


class Chat(Case):
    def start(self, *args):
        return subprocess.Popen([KIVI, "run", "-m", MODEL, "--kv", "kivi2", *map(str, args)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_later_turns_go_on_from_the_cache(self):
        result = self.ok("run", "-m", MODEL, "-n", 12, "--stats", stdin="What is the capital of France?\nAnd of Italy?\n")
        self.assertIn("Paris", result.stdout)
        first, second = [self.stats(part)["prefill"] for part in re.split(r"(?=prompt \d)", result.stderr)[1:]]
        n_prompts = [int(n) for n in re.findall(r"prompt (\d+) tokens", result.stderr)]
        self.assertLess(second - first, n_prompts[1] - n_prompts[0])  # the first answer is not prefilled

    def test_ctrl_c_stops_the_answer_only(self):
        with self.start("-n", 2000, "--context", 4096, "--temperature", 1) as chat:
            chat.stdin.write(b"Count from one to one thousand, in words.\n")
            chat.stdin.flush()
            self.assertTrue(chat.stdout.read(1))
            chat.send_signal(signal.SIGINT)
            out, err = chat.communicate(b"What is 2 + 2?\n", timeout=300)
            self.assertEqual(chat.returncode, 0, err)
            self.assertTrue(out.endswith(b"\n"))

    def test_ctrl_c_outside_an_answer_ends_the_chat(self):
        with self.start("-n", 3) as chat:
            chat.stdin.write(b"Hello\n")
            chat.stdin.flush()
            chat.stdout.readline()
            # The line may have ended inside the answer: then the first signal stops that.
            for _ in range(2):
                chat.send_signal(signal.SIGINT)
                try:
                    chat.wait(timeout=5)
                    break
                except subprocess.TimeoutExpired:
                    pass
            self.assertEqual(chat.wait(timeout=5), 130)


class Info(Case):
    def test_json(self):
        info = json.loads(self.ok("info", "-m", MODEL, "--context", 4096, "--json", "-").stdout)
        self.assertEqual(info["model"]["architecture"], "llama")
        self.assertEqual(info["model"]["n_layers"], 30)
        self.assertEqual([row["kv"] for row in info["kv"]], list(PRESETS))
        for row, bits in zip(info["kv"], PRESETS.values()):
            self.assertEqual(list(row)[:4], ["kv", "bytes_per_token", "bytes_at_context", "bits_per_element"])
            self.assertEqual(row["bits_per_element"], bits)
            self.assertAlmostEqual(row["bytes_per_token"], ELEMENTS_PER_TOKEN * bits / 8, delta=1)
        f16, kivi2 = [next(row["bytes_at_context"] for row in info["kv"] if row["kv"] == kv) for kv in ("f16", "kivi2")]
        self.assertEqual(f16, 4096 * ELEMENTS_PER_TOKEN * 2)
        self.assertGreater(f16 / kivi2, 4.5)

    def test_random_weights(self):
        info = json.loads(self.ok("info", "--random-weights", "llama-2-7b", "--context", 8192, "--json", "-").stdout)
        self.assertEqual(info["model"]["name"], "llama-2-7b, random weights")
        self.assertTrue(info["model"]["random_weights"])
        self.assertIsNone(info["model"]["architecture"])
        self.assertEqual(info["kv"][0]["bytes_at_context"], 8192 * 2 * 32 * 4096 * 2)
        self.assertIn("random 16 bits", self.ok("info", "--random-weights", "llama-3-8b").stdout)

    def test_text(self):
        out = self.ok("info", "-m", MODEL).stdout
        self.assertIn("30", out)
        self.assertIn("kivi2", out)


class Perplexity(Case):
    def test_measures_quality(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.json"
            self.ok("eval", "perplexity", "-m", MODEL, "--text", TEXT, "--context", 256, "--chunks", 2, "--kv",
                    "kivi2,f16,kivi4", "--json", path)
            self.assertEqual(os.listdir(folder), ["out.json"])
            kivi2, f16, kivi4 = json.loads(path.read_text())["results"]
        for row, kv, bits in (kivi2, "kivi2", 3), (f16, "f16", 16), (kivi4, "kivi4", 5):
            self.assertEqual(list(row)[:7], ["kv", "perplexity", "nll_per_token", "n_tokens", "bits_per_element",
                                             "kl_to_f16", "top1_agreement"])
            self.assertEqual((row["kv"], row["bits_per_element"], row["n_tokens"]), (kv, bits, 2 * 127))
        self.assertAlmostEqual(f16["perplexity"], F16_PERPLEXITY, delta=0.02 * F16_PERPLEXITY)
        self.assertEqual((f16["kl_to_f16"], f16["top1_agreement"]), (0, 1))
        self.assertLess(abs(kivi4["perplexity"] / f16["perplexity"] - 1), 0.03)
        self.assertTrue(0 < kivi4["kl_to_f16"] < 0.02, kivi4)
        self.assertTrue(0.03 < kivi2["kl_to_f16"] < 0.6, kivi2)
        self.assertGreater(kivi4["top1_agreement"], kivi2["top1_agreement"])

    def test_json_that_cannot_be_written(self):
        with tempfile.TemporaryDirectory() as folder:
            self.refused(1, [f"{folder}/missing/out.json"], "eval", "perplexity", "-m", MODEL, "--text", TEXT,
                         "--json", f"{folder}/missing/out.json")
            self.assertEqual(os.listdir(folder), [])


class Agreement(Case):
    def test_instruction_sets_write_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("The capital of France is\nOnce upon a time\n")
            result = json.loads(self.ok("eval", "agreement", "-m", MODEL, "--device", "cpu", "--with", "cpu:portable",
                                        "--prompts", prompts, "-n", 6, "--kv", "f16,kivi2", "--json", "-").stdout)
        self.assertEqual(result["other_device"], "cpu:portable")
        self.assertEqual([(row["kv"], row["prompt"], row["same"], row["tokens"]) for row in result["results"]],
                         [(kv, prompt, 6, 6) for kv in ("f16", "kivi2") for prompt in (0, 1)])
        for row in result["results"]:
            self.assertIsNone(row["difference"])
            self.assertLess(row["largest_logit_difference"], 0.1)


class Bench(Case):
    def test_attention(self):
        result = self.ok("bench", "attention", "--kv", "kivi2,f16", "--shapes", "2x200x4x2x64", "--ragged", "--append",
                         "--samples", 1, "--json", "-")
        bench = json.loads(result.stdout)
        self.assertEqual(list(bench)[:3], ["device", "device_detail", "read_bandwidth_gb_s"])
        self.assertGreater(bench["read_bandwidth_gb_s"], 0)
        kivi2, ragged, f16 = bench["results"]
        for row in kivi2, ragged, f16:
            self.assertEqual(list(row)[:11], ["kv", "group_size", "batch", "tokens", "q_heads", "kv_heads", "head_dim",
                                              "microseconds", "bytes", "gb_s", "fraction_of_read_bandwidth"])
            self.assertAlmostEqual(row["gb_s"], row["bytes"] / row["microseconds"] * 1e-3, delta=1e-6 * row["gb_s"])
        # All rows of both sequences and the new one; keys of one page and 72 values packed.
        self.assertEqual(f16["bytes"], 2 * 201 * 2 * 2 * 64 * 2)
        self.assertEqual(f16["bytes"] - kivi2["bytes"], 2 * (128 + 72) * 2 * 64 * (16 - 3) / 8)
        self.assertEqual([row["ragged"] for row in bench["results"]], [False, True, False])
        self.assertEqual([row["steps"] for row in bench["stores"]], [128, 16])
        self.assertIn("2x200x4x2x64 kivi2 ragged", result.stderr)

    def test_json(self):
        bench = json.loads(self.ok("bench", "decode", "-m", MODEL, "--kv", "f16,kivi2", "--depth", "0,300", "-n", 2,
                                   "--repetitions", 1, "--json", "-").stdout)
        self.assertTrue(bench["device"])
        self.assertTrue(bench["model"])
        self.assertEqual([(row["kv"], row["depth"]) for row in bench["results"]],
                         [("f16", 0), ("kivi2", 0), ("f16", 300), ("kivi2", 300)])
        for row in bench["results"]:
            self.assertEqual(list(row)[:5],
                             ["kv", "depth", "decode_tokens_per_s", "prefill_tokens_per_s", "kv_bytes"])
            self.assertGreater(row["decode_tokens_per_s"], 0)
            self.assertEqual(row["prefill_tokens_per_s"] > 0, row["depth"] > 0)
            self.assertEqual(row["kv_bytes"] > 0, row["depth"] > 0)


    def test_throughput_with_random_weights(self):
        shape = {"name": "tiny", "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "hidden_size": 128,
                 "ffn_size": 256, "vocab_size": 500}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shape.json"
            path.write_text(json.dumps(shape))
            step = json.loads(self.ok("bench", "step", "--random-weights", path, "--kv", "kivi2", "--batch", 4,
                                      "--tokens", 300, "--samples", 1, "--json", "-").stdout)
            result = self.ok("bench", "throughput", "--random-weights", path, "--kv", "f16,kivi2", "--requests", 20,
                             "--prompt", 161, "--output", 30, "--kv-memory", 0.002, "--json", "-")
            decode = json.loads(self.ok("bench", "decode", "--random-weights", path, "--depth", 0, "-n", 2,
                                        "--json", "-").stdout)
            sweep = json.loads(self.ok("bench", "throughput", "--random-weights", path, "--kv", "f16,kivi2",
                                       "--requests", 100, "--prompt", 1020, "--output", 4, "--kv-memory", 0.003,
                                       "--decode-only", "--batch-sweep", "--json", "-").stdout)
        bench = json.loads(result.stdout)
        self.assertEqual({part["operation"]: part["calls"] for part in step["results"][0]["operations"]}["linear"], 9)
        self.assertGreater(step["results"][0]["step_us"], 0)
        for report in bench, decode, step:
            self.assertIn("random weights", report["model"])
            self.assertTrue(report["random_weights"])
        self.assertIn("f16, 20 requests", result.stderr)
        f16, kivi2 = bench["results"]
        for row in f16, kivi2:
            self.assertEqual(list(row)[:12], ["kv", "requests", "prompt", "output", "seconds", "output_tokens_per_s",
                                              "decode_only_tokens_per_s", "peak_memory_bytes", "weight_bytes",
                                              "kv_capacity_tokens", "max_running", "preemptions"])
            self.assertEqual((row["requests"], row["prompt"], row["output"], row["preemptions"]), (20, 161, 30, 0))
            self.assertAlmostEqual(row["output_tokens_per_s"] * row["seconds"], 20 * 30, delta=1)
            self.assertLess(row["max_running"], 20)
            self.assertLessEqual(row["peak_kv_bytes"], 0.002 * 2**30)
        self.assertGreater(kivi2["kv_capacity_tokens"], f16["kv_capacity_tokens"])
        self.assertGreater(kivi2["max_running"], f16["max_running"])
        f16, kivi2 = sweep["memory"]
        self.assertEqual(f16["kv_capacity_tokens"] // 1024, f16["largest_batch"])
        self.assertGreater(kivi2["capacity_ratio"], 2.9)
        self.assertGreater(kivi2["peak_memory_ratio"], 1.5)
        self.assertEqual([row["requests"] for row in sweep["results"] if row["kv"] == "f16"], [1, 2, 3])
        self.assertEqual([row["requests"] for row in sweep["results"] if row["kv"] == "kivi2"][:4], [1, 2, 3, 4])

    def test_throughput_of_a_model(self):
        out = self.ok("bench", "throughput", "-m", MODEL, "--kv", "kivi2", "--requests", 3, "--prompt-tokens", 140,
                      "--output-tokens", 4, "--max-sequences", 2, "--decode-only").stdout
        self.assertIn("prompts not computed", out)
        self.assertRegex(out.splitlines()[-1], r"\Akivi2 +3 ")


class Compare(Case):
    def test_prints_answers_and_a_table(self):
        out = self.ok("compare", "-m", MODEL, "-p", "What is the capital of France?", "-n", 12, "--text", TEXT,
                      "--context", 128, "--chunks", 1).stdout
        self.assertEqual(out.count("Paris"), 3, out)
        rows = [line.split() for line in out.splitlines()[-3:]]
        self.assertEqual([row[0] for row in rows], ["f16", "kivi-m", "kivi2"])
        for row in rows:
            self.assertTrue(5 < float(row[-1]) < 1000, row)  # perplexity


class BadCommandLine(Case):
    def test_usage(self):
        for args, fragments in (
            ([], ["subcommand"]),
            (["fly"], ["fly"]),
            (["run", "-p", "x"], ["--model"]),
            (["run", "-m", MODEL, "-p", "x", "--kv", "kivi3"], ["kivi3", "f16, kivi4, kivi2, kivi-l, kivi-m, kivi-s"]),
            (["run", "-m", MODEL, "-p", "x", "-n", "0"], ["-n"]),
            (["run", "-m", MODEL, "-p", "x", "--threads", "many"], ["--threads", "many"]),
            (["run", "-m", MODEL, "-p", "x", "--temperature", "-1"], ["temperature -1", "0"]),
            (["run", "-m", MODEL, "-p", "x", "--raw", "--chat"], ["--raw"]),
            (["run", "-m", MODEL, "--raw"], ["-p"]),
            (["run", "-m", MODEL, "-p", "x", "--chat-format", "html"], ["html", "chatml"]),
            (["run", "-m", MODEL, "-p", "x", "--context", "9000"], ["9000", "8192"]),
            (["run", "-m", MODEL, "--raw", "-p", ""], ["empty prompt"]),
            (["run", "-m", MODEL, "-p", "word " * 9000], ["8192", "shorten"]),
            (["run", "-m", MODEL, "-p", "x", "--kv", "f16", "--sinks", "4"], ["sinks=4", "f16"]),
            (["info", "-m", MODEL, "--context", "0"], ["--context"]),
            (["info", "-m", MODEL, "--kv", "kivi2", "--group-size", "48"], ["group-size 48", "16, 32, 64 or 128"]),
            (["info", "-m", MODEL, "--kv", "kivi2:sink=4"], ["sink", "sinks"]),
            (["eval", "agreement", "-m", MODEL], ["--prompts"]),
            (["eval", "perplexity", "-m", MODEL], ["--text"]),
            (["eval", "perplexity", "-m", MODEL, "--text", LONG_PROMPT], ["2048", "smaller context"]),
            (["eval", "perplexity", "-m", MODEL, "--text", TEXT, "--context", "10000"], ["10000", "8192"]),
            (["eval", "perplexity", "-m", MODEL, "--text", TEXT, "--residual", "100"], ["group-size 128", "residual 100"]),
            (["bench", "decode", "-m", MODEL, "--depth", "-5"], ["-5"]),
            (["bench", "decode", "-m", MODEL, "--depth", "0", "-n", "0"], ["0 tokens"]),
            (["bench", "decode", "-m", MODEL, "--key-bits", "5"], ["key-bits 5", "2, 3, 4, 8 or 16"]),
            (["bench", "attention", "--shapes", "2x3"], ["2x3", "64x4096x32x8x128"]),
            (["bench", "attention", "--shapes", "1x64x3x2x64"], ["1x64x3x2x64", "multiple"]),
            (["bench", "decode"], ["--model", "--random-weights"]),
            (["bench", "throughput", "-m", MODEL, "--random-weights", "llama-2-7b"], ["--random-weights"]),
            (["bench", "step", "-m", MODEL, "--batch", "0"], ["batch of 0"]),
            (["bench", "throughput", "-m", MODEL, "--requests", "0"], ["0 requests"]),
            (["bench", "throughput", "-m", MODEL, "--memory-fraction", "2"], ["memory fraction 2"]),
            (["bench", "throughput", "-m", MODEL, "--device", "cpu", "--memory-fraction", "0.5"], ["--kv-memory"]),
            (["run", "-m", MODEL, "-p", "x", "--kv-memory", "-1"], ["--kv-memory -1"]),
            (["bench", "throughput", "-m", MODEL, "--step-tokens", "0"], ["0 prompt tokens"]),
            (["run", "-m", MODEL, "-p", "x", "--step-tokens", "0"], ["--step-tokens"]),
            (["run", "-m", MODEL, "-p", "x", "--dtype", "f8"], ["--dtype f8", "f16", "bf16"]),
            (["compare", "-m", MODEL, "-n", "9000"], ["9000", "8192"]),
            (["compare", "-m", MODEL, "--kv", ""], ["f16, kivi4, kivi2, kivi-l, kivi-m, kivi-s"]),
            (["compare", "-m", MODEL, "--chunks", "x"], ["--chunks"]),
        ):
            self.refused(2, fragments, *args)

    def test_what_is_not_there(self):
        for args, fragments in (
            (["info", "-m", "/no/such/model.gguf"], ["/no/such/model.gguf"]),
            (["info", "-m", MODEL, "--device", "cpu:avx9"], ["avx9", "avx2"]),
            (["info", "-m", MODEL, "--device", "cuda"], ["cuda"]),
            (["info", "-m", MODEL, "--device", "cpu", "--dtype", "bf16"], ["bf16", "cpu", "--device cuda"]),
            (["run", "-m", MODEL, "-f", "/no/such/prompt"], ["/no/such/prompt"]),
            (["eval", "perplexity", "-m", MODEL, "--text", "/no/such/text"], ["/no/such/text"]),
            (["compare", "-m", "/no/such/model.gguf"], ["/no/such/model.gguf"]),
            (["bench", "throughput", "--random-weights", "llama-9"], ["llama-9", "llama-2-7b"]),
            (["bench", "throughput", "-m", MODEL, "--kv-memory", "0.001"], ["KV cache", "--kv-memory"]),
            (["run", "-m", MODEL, "-p", "x", "--kv-memory", "0.001"], ["KV cache", "--kv-memory"]),
            (["compare", "-m", MODEL, "-p", "x", "--kv-memory", "0.001"], ["KV cache", "--kv-memory"]),
        ):
            self.refused(1, fragments, *args)
        self.refused(1, ["sse9"], "info", "-m", MODEL, env={"KIVI_FORCE_ISA": "sse9"})

    def test_no_room_for_the_cache(self):
        limit = 2 << 30
        self.refused(1, [], "bench", "decode", "-m", MODEL, "--depth", 10**6, "--kv", "f16",
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))

    def test_help_and_version(self):
        self.assertRegex(self.ok("--version").stdout, r"\Akivi \d+\.\d+\.\d+\n\Z")
        for command in ([], ["run"], ["info"], ["eval", "perplexity"], ["eval", "agreement"], ["bench", "attention"],
                        ["bench", "decode"], ["bench", "step"], ["bench", "throughput"], ["compare"]):
            self.assertIn("--help", self.ok(*command, "--help").stdout)


class BadModel(Case):
    def test_broken_files(self):
        content = Path(MODEL).read_bytes()
        for name, data in (
            ("empty", b""),
            ("text", b"This is not a model.\n" * 100),
            ("header", content[:20]),
            ("metadata", content[: 1 << 20]),
            ("tensors", content[: len(content) // 2]),
            ("last-byte", content[:-4096]),
            ("version", content[:4] + b"\x63" + content[5 : 1 << 16]),
            ("count", content[:8] + b"\xff" * 8 + content[16 : 1 << 16]),
        ):
            with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".gguf") as file:
                file.write(data)
                file.flush()
                self.refused(1, [], "info", "-m", file.name)
                self.refused(1, [], "run", "-m", file.name, "-p", "x")
        self.refused(1, [], "info", "-m", str(ROOT))


SKIPPED = 77  # to ctest
F16_PERPLEXITY = 34.02  # of chunks 0 and 1 of 256 tokens

if __name__ == "__main__":
    if not Path(MODEL).exists():
        print(f"{MODEL} is missing; run tools/get-model smollm2-135m")
        sys.exit(1 if os.environ.get("KIVI_REQUIRE_MODEL") else SKIPPED)
    unittest.main(verbosity=2)
