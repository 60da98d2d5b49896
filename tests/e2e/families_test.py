#!/usr/bin/env python3
"""End-to-end tests: the kivi executable ($KIVI) on every family and on both kinds of files. families_test.py [GROUP]...

Goldens need nothing but the repository. Gemma is skipped where its model is missing: tools/get-model gemma3-270m."""

import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

from e2e_test import PRESETS, ROOT, SKIPPED, TEXT, Case

GOLDENS = ROOT / "tests/golden/models"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/model.gguf"))
GEMMA = ROOT / "models/gemma3-270m.gguf"


class Goldens(Case):
    """Models of random weights: what they write means nothing, but is the same from both kinds of files."""

    def test_folder_and_gguf_write_the_same(self):
        written = {}
        for folder in FOLDERS:
            for kv in "f16", "kivi2:residual=32":
                texts = [self.ok("run", "-m", model, "--raw", "-p", "the thing in the thin hen " * 4, "-n", 24, "--kv",
                                 kv).stdout for model in (folder, folder / "model.gguf")]
                self.assertEqual(*texts, folder.name)
                written[folder.name] = texts[0]
        self.assertGreater(len(set(written.values())), len(FOLDERS) // 2, written)

    def test_info_says_the_same_of_both(self):
        for folder in FOLDERS:
            of_folder, of_gguf = [json.loads(self.ok("info", "-m", model, "--json", "-").stdout)
                                  for model in (folder, folder / "model.gguf")]
            for key in set(of_folder["model"]) - {"name", "file", "weight_bytes", "quantisation"}:
                self.assertEqual(of_folder["model"][key], of_gguf["model"][key], (folder.name, key))
            self.assertEqual(of_folder["kv"], of_gguf["kv"])

    def test_wrong_folders(self):
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / "model"
            shutil.copytree(GOLDENS / "mistral", folder)
            config = json.loads((folder / "config.json").read_text())

            def refused(fragments, **changes):
                (folder / "config.json").write_text(json.dumps(config | changes))
                self.refused(1, fragments, "run", "-m", folder, "-p", "x")

            refused(["'mamba'", "llama", "falcon"], model_type="mamba")
            out = self.ok("info", "-m", folder).stdout
            self.assertIn("does not run it", out)
            self.assertIn("132.8 KiB", out)
            refused(["yarn", "longrope"], rope_scaling={"rope_type": "yarn", "factor": 4.0})
            refused(["hidden_size"], hidden_size=None)
            refused(["num_attention_heads"], num_attention_heads=0)
            (folder / "model-00002-of-00003.safetensors").unlink()
            refused(["'model-00002-of-00003.safetensors'", "fetch"])
            (folder / "model.safetensors.index.json").unlink()
            refused(["model.safetensors"])
            shutil.copy(GOLDENS / "llama/model.safetensors", folder)
            refused(["'lm_head.weight'", "missing"])
            (folder / "tokenizer.json").unlink()
            refused(["tokenizer.json", "tokenizer.model"], num_attention_heads=2, tie_word_embeddings=True,
                    num_key_value_heads=2)
            (folder / "config.json").unlink()
            self.refused(1, ["config.json", "GGUF"], "run", "-m", folder, "-p", "x")


class Gemma(Case):
    """Gemma 3 270M: one KV head of 256, three layers that see everything among eighteen, a SentencePiece tokenizer."""

    @classmethod
    def setUpClass(cls):
        if not GEMMA.exists():
            raise unittest.SkipTest(f"{GEMMA} is missing; run tools/get-model gemma3-270m")

    def test_answers_under_every_preset(self):
        for kv in PRESETS:
            result = self.ok("run", "-m", GEMMA, "-p", "What is the capital of France?", "-n", 12, "--kv", kv)
            self.assertIn("Paris", result.stdout, kv)

    def test_info_shows_layers_that_slide(self):
        model = json.loads(self.ok("info", "-m", GEMMA, "--json", "-").stdout)["model"]
        self.assertEqual((model["architecture"], model["n_layers"], model["n_kv_heads"], model["head_dim"],
                          model["n_sliding_layers"], model["sliding_window"]), ("gemma3", 18, 1, 256, 15, 512))

    def test_quality(self):
        result = self.ok("eval", "perplexity", "-m", GEMMA, "--text", TEXT, "--context", 640, "--chunks", 1, "--kv",
                         "f16,kivi4,kivi2", "--json", "-")
        f16, kivi4, kivi2 = json.loads(result.stdout)["results"]
        self.assertAlmostEqual(f16["perplexity"], GEMMA_PERPLEXITY, delta=0.02 * GEMMA_PERPLEXITY)
        self.assertTrue(0 < kivi4["kl_to_f16"] < 0.05, kivi4)
        self.assertTrue(kivi4["kl_to_f16"] < kivi2["kl_to_f16"] < 1, kivi2)


GEMMA_PERPLEXITY = 18.20  # of the first chunk of 640 tokens, which begins with BOS

if __name__ == "__main__":
    result = unittest.main(verbosity=2, exit=False).result
    sys.exit(1 if not result.wasSuccessful() else 0 if result.testsRun else SKIPPED)
