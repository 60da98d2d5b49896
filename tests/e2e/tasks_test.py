#!/usr/bin/env python3
"""End-to-end tests: kivi eval passkey, needle, gsm8k and truthfulqa on a real model and on excerpts of the data.
tasks_test.py [GROUP]..."""

import importlib.util
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

from e2e_test import MODEL, ROOT, SKIPPED, Case

DATA = ROOT / "tests/data"
GOLDEN = ROOT / "tests/golden/models/llama/model.gguf"  # random weights, no chat format

sys.path.insert(0, str(ROOT / "python"))
from libkivi.plots import heatmap  # noqa: E402
from libkivi.plots.__main__ import Failure, main as plot, read  # noqa: E402


class Tasks(Case):
    def evaluate(self, task, *args, model=MODEL):
        report = json.loads(self.ok("eval", task, "-m", model, "--data", DATA, "--json", "-", *args).stdout)
        self.assertEqual(report["task"], task)
        self.assertEqual(report["results"][0]["kv"], "f16")
        for result in report["results"]:
            self.assertEqual(result["right"], sum(item["right"] for item in result["items"]))
            self.assertEqual(result["n"], len(result["items"]))
            low, high = result["interval"]
            self.assertTrue(0 <= low <= result["accuracy"] <= high <= 1, result["interval"])
            low, high = result["difference"]["interval"]
            self.assertTrue(-1 <= low <= result["difference"]["value"] <= high <= 1)
        return report

    def test_passkey_is_found(self):
        report = self.evaluate("passkey", "--kv", "kivi4", "--contexts", "300,400", "--depths", 2, "--limit", 1)
        self.assertEqual(report["format"], "chat format chatml")
        f16, kivi4 = report["results"]
        self.assertEqual(f16["right"], 4, f16["items"])
        self.assertGreaterEqual(kivi4["right"], 3, kivi4["items"])
        self.assertEqual(kivi4["prompt_tokens"]["packed_keys"], 256)
        contexts, depths, parts = heatmap.grid(f16)
        self.assertEqual((contexts, depths, parts), ([300, 400], [0, 1], [[1, 1], [1, 1]]))

    def test_needle_is_found_whatever_the_batch(self):
        args = ["--kv", "kivi4", "--contexts", 300, "--depths", 1, "--limit", 2]
        one, two = [self.evaluate("needle", *args, "--batch", batch) for batch in (1, 2)]
        self.assertEqual([result["items"] for result in one["results"]], [result["items"] for result in two["results"]])
        self.assertGreaterEqual(one["results"][0]["right"], 1, one["results"][0]["items"])
        if importlib.util.find_spec("matplotlib") is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "needle.json"
            path.write_text(json.dumps(one))
            self.assertEqual(plot([str(path)]), 0)
            self.assertTrue((Path(folder) / "needle.png").read_bytes().startswith(b"\x89PNG"))

    def test_gsm8k_with_examples(self):
        report = self.evaluate("gsm8k", "--kv", "kivi2", "--shots", 1, "--limit", 2, "--max-tokens", 16)
        self.assertEqual([item["expected"] for item in report["results"][1]["items"]], ["18", "3"])
        without = self.evaluate("gsm8k", "--kv", "f16", "--limit", 1, "--max-tokens", 2)
        self.assertEqual(len(without["results"]), 1)
        self.assertLess(without["results"][0]["items"][0]["prompt_tokens"],
                        report["results"][0]["items"][0]["prompt_tokens"])

    def test_truthfulqa(self):
        f16, kivi2 = self.evaluate("truthfulqa", "--kv", "kivi2", "--limit", 1)["results"]
        self.assertEqual(kivi2["prompt_tokens"]["packed_keys"], 128)
        for result in f16, kivi2:
            self.assertTrue(0 < result["items"][0]["mc2"] < 1)
        self.assertNotEqual(f16["items"][0]["mc2"], kivi2["items"][0]["mc2"])

    def test_text_without_a_chat_format(self):
        with tempfile.TemporaryDirectory() as folder:  # its context is short
            Path(folder, "test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
            out = self.ok("eval", "gsm8k", "-m", GOLDEN, "--data", folder, "--max-tokens", 2, "--kv", "kivi2").stdout
        self.assertIn("plain text, for the model has no chat format that kivi knows", out)
        self.assertRegex(out, r"\nf16 +\d of 1 ")
        self.assertRegex(out, r"\nkivi2 +\d of 1 ")


class BadTasks(Case):
    def test_usage(self):
        for args, fragments in (
            (["fly"], ["fly"]),
            ([], ["gsm8k"]),
            (["gsm8k", "-m", MODEL], ["--data"]),
            (["passkey", "-m", MODEL, "--data", DATA, "--contexts", "9000"], ["9000", "8192"]),
            (["passkey", "-m", MODEL, "--data", DATA, "--contexts", "many"], ["many"]),
            (["passkey", "-m", MODEL, "--data", DATA, "--paper", "--contexts", "512"], ["--paper"]),
            (["needle", "-m", MODEL, "--data", DATA, "--contexts", "64"], ["larger context"]),
            (["needle", "-m", MODEL, "--data", DATA, "--depths", "0"], ["--depths"]),
            (["gsm8k", "-m", MODEL, "--data", DATA, "--shots", "5"], ["--shots 5", "has 4"]),
            (["gsm8k", "-m", MODEL, "--data", DATA, "--max-tokens", "8192"], ["8192", "shorter"]),
            (["gsm8k", "-m", MODEL, "--data", DATA, "--limit", "0"], ["--limit"]),
            (["gsm8k", "-m", MODEL, "--data", DATA, "--chat-format", "html"], ["html", "chatml"]),
        ):
            self.refused(2, fragments, "eval", *args)

    def test_help(self):
        for task in "passkey", "needle", "gsm8k", "truthfulqa":
            self.assertIn("--data", self.ok("eval", task, "--help").stdout)

    def test_data(self):
        with tempfile.TemporaryDirectory() as folder:
            for task, name, not_it in (("gsm8k", "test.jsonl", "not an object"), ("truthfulqa", "mc_task.json", "must be"),
                                       ("passkey", "passkey_examples.jsonl", "not an object")):
                self.refused(1, ["not a folder"], "eval", task, "-m", MODEL, "--data", f"{folder}/no")
                self.refused(1, [folder, name], "eval", task, "-m", MODEL, "--data", folder)
                for text, fragment in ("", "empty"), ('{"question": ', "not JSON"), ("3", not_it):
                    Path(folder, name).write_text(text)
                    self.refused(1, [name, fragment], "eval", task, "-m", MODEL, "--data", folder)
                os.remove(Path(folder, name))
            self.refused(1, ["*.txt"], "eval", "needle", "-m", MODEL, "--data", folder)
            Path(folder, "test.jsonl").write_text('{"question": "Why?", "answer": "#### 1"}\n{"question": "Why?"}\n')
            self.refused(1, ["line 2", "'answer' is missing"], "eval", "gsm8k", "-m", MODEL, "--data", folder)

    def test_heat_map(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.json")
            with self.assertRaisesRegex(Failure, "cannot be read"):
                read(path)
            for text, fragment in ("{", "is not JSON"), ("[]", "nothing to plot"), ('{"task": "needle"}', "nothing to plot"):
                path.write_text(text)
                with self.assertRaisesRegex(Failure, fragment):
                    read(path)


if __name__ == "__main__":
    if not Path(MODEL).exists():
        print(f"{MODEL} is missing; run tools/get-model smollm2-135m")
        sys.exit(1 if os.environ.get("KIVI_REQUIRE_MODEL") else SKIPPED)
    unittest.main(verbosity=2)
