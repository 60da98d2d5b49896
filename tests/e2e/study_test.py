#!/usr/bin/env python3
"""End-to-end tests of kivi study on a real model. study_test.py [GROUP]..."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import e2e_test
from e2e_test import ELEMENTS_PER_TOKEN, KIVI, LONG_PROMPT, MODEL, ROOT, TEXT, Case

# What study.json is made of: a dict of what must be there, a list of one kind of element, or types.
NUMBER = (int, float)
INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
SIDE = {"outlier_ratio": NUMBER, "largest_outlier_ratio": NUMBER, "stability": NUMBER, "first_token": NUMBER,
        "outliers": [{"head": int, "channel": int, "ratio": NUMBER}]}
SCHEMA = {
    "kivi_study": int, "kivi_version": str, "device": str, "host_device": str, "is_quick": bool,
    "model": {"name": str, "file": str, "sha256": str, "quantisation": str, "n_layers": int, "n_heads": int,
              "n_kv_heads": int, "head_dim": int, "context": int},
    "text": {"name": str, "sha256": str, "n_tokens": int},
    "chunks": {"context": int, "n": int, "captured": int},
    "layers": [{"layer": int, "attention": {"sparsity": NUMBER, "mass_of_first": [list]},
                "sides": {"key_before_rope": SIDE, "key": SIDE, "value": SIDE}}],
    "errors": {"rows": [{"side": str, "axis": str, "bits": int, "reconstruction": NUMBER, "score": NUMBER,
                         "output": NUMBER, "layers": [list]}],
               "sparsity": NUMBER, "paper": {"model": str, "rows": [dict], "sparsity": NUMBER}},
    "maps": [{"layer": int, "head": int, "side": str, "tokens_per_bin": int, "bins": [list]}],
    "quality": {"presets": [{"setting": str}],
                "axes": [{"keys": str, "values": str, "bits": int, "window": bool, "setting": str}],
                "group_size": [{"value": int, "setting": str}], "residual": [{"value": int, "setting": str}],
                "settings": [{"name": str, "is_fake": bool, "bits_per_element": NUMBER,
                              "effective_bits_per_element": NUMBER, "perplexity": NUMBER, "loss": INTERVAL,
                              "kl": INTERVAL, "top1": INTERVAL, "chunks": [list]}]},
    "recommendation": {"max_loss": NUMBER, "memory_bytes": int, "model_context": int, "setting": (str, type(None)),
                       "is_certain": bool,
                       "candidates": [{"setting": str, "bytes_per_token": NUMBER, "bytes_at_context": int,
                                       "context_in_memory": int, "loss": INTERVAL, "is_under": bool}]},
}
SMALL = ("--quick", "--text", TEXT, "--context", 144, "--tokens", 432)


class Study(Case):
    def matches(self, value, schema, path="study"):
        if isinstance(schema, dict):
            self.assertEqual(set(schema) - set(value), set(), path)
            for key, part in schema.items():
                self.matches(value[key], part, f"{path}.{key}")
        elif isinstance(schema, list):
            self.assertTrue(value, path)
            for i, element in enumerate(value):
                self.matches(element, schema[0], f"{path}[{i}]")
        else:
            self.assertIsInstance(value, schema, path)

    def test_a_small_study(self):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "a" / "study"
            result = self.ok("study", "-m", MODEL, *SMALL, "--out", out, "--layers", "3,7", "--heads", 2)
            self.assertEqual(sorted(path.name for path in out.iterdir()), ["parts", "study.html", "study.json"])
            study = json.loads((out / "study.json").read_text())
            self.matches(study, SCHEMA)
            self.assertIn(study["recommendation"]["setting"] or "None stays", result.stdout)
            self.check_findings(study)
            self.check_page((out / "study.html").read_text(), study)
            self.check_resumption(out, study)
            self.check_plots(out)

    def check_findings(self, study):
        self.assertEqual(study["chunks"], {"context": 144, "n": 3, "captured": 3})
        self.assertEqual({(m["layer"], m["head"]) for m in study["maps"]}, {(3, 2), (7, 2)})
        for m in study["maps"]:
            self.assertEqual({len(row) for row in m["bins"]}, {64})
        # The paper's findings.
        errors = {(r["side"], r["axis"], r["bits"]): r for r in study["errors"]["rows"]}
        self.assertLess(errors["key", "channel", 2]["score"], errors["key", "token", 2]["score"] / 1.5)
        self.assertGreater(errors["value", "token", 2]["reconstruction"],
                           errors["value", "channel", 2]["reconstruction"])
        self.assertLess(errors["value", "token", 2]["output"], errors["value", "channel", 2]["output"])
        outliers = {side: sum(layer["sides"][side]["outlier_ratio"] for layer in study["layers"]) / 30
                    for side in ("key", "value")}
        self.assertGreater(outliers["key"], 2 * outliers["value"])
        settings = {s["name"]: s for s in study["quality"]["settings"]}
        axes = {(a["keys"], a["values"]): settings[a["setting"]]["kl"]["mean"]
                for a in study["quality"]["axes"] if a["bits"] == 2 and not a["window"]}
        self.assertEqual(min(axes, key=axes.get), ("channel", "token"))
        for table in ("presets", "axes", "group_size", "residual"):
            for row in study["quality"][table]:
                self.assertEqual(len(settings[row["setting"]]["chunks"]), 3)
        candidates = {c["setting"]: c for c in study["recommendation"]["candidates"]}
        self.assertEqual(candidates["f16"]["bytes_per_token"], 2 * ELEMENTS_PER_TOKEN)

    def check_page(self, page, study):
        for fetch in ("http://", "https://", "src=", "href=", "url(", "@import"):
            self.assertNotIn(fetch, page)
        data = page.split('<script type="application/json" id="study">')[1].split("</script>")[0]
        self.assertEqual(json.loads(data), study)

    def check_resumption(self, out, study):
        times = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
        self.ok("study", "-m", MODEL, *SMALL, "--out", out, "--layers", "3,7", "--heads", 2, "--max-loss", "50%")
        self.assertEqual({path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}, times)
        again = json.loads((out / "study.json").read_text())
        self.assertEqual(again["quality"], study["quality"])
        self.assertEqual(again["recommendation"]["max_loss"], 0.5)

    def check_plots(self, out):
        if importlib.util.find_spec("matplotlib") is None:
            return
        plots = subprocess.run([sys.executable, "-m", "libkivi.plots", out / "study.json"], cwd=ROOT / "python",
                               capture_output=True, text=True)
        self.assertEqual(plots.returncode, 0, plots.stderr)
        written = [Path(line) for line in plots.stdout.splitlines()]
        self.assertEqual(len(written), 7)
        for path in written:
            self.assertTrue(path.read_bytes().startswith(b"\x89PNG"), path)

    def test_goes_on_after_an_interruption(self):
        with tempfile.TemporaryDirectory() as folder:
            command = ["study", "-m", MODEL, *SMALL, "--out", folder, "--kv", "f16,kivi2"]
            parts = Path(folder) / "parts"
            with subprocess.Popen([KIVI, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
                while run.poll() is None and not list(parts.glob("*.json")):
                    time.sleep(0.05)
                run.kill()
            times = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
            self.assertTrue(times)
            self.assertFalse((Path(folder) / "study.json").exists())
            self.ok(*command)
            for path, before in times.items():
                self.assertEqual(path.stat().st_mtime_ns, before)

    def test_bad_input(self):
        with tempfile.TemporaryDirectory() as folder:
            for args, fragments in (
                (["--text", LONG_PROMPT], ["too short", "--text"]),
                (["--tokens", "500"], ["500", "too short", "--tokens"]),
                (["--context", "9000"], ["9000", "8192"]),
                (["--max-loss", "much"], ["--max-loss much", "1%"]),
                (["--max-loss", "-1%"], ["--max-loss -1%"]),
                (["--memory", "0"], ["--memory 0"]),
                (["--layers", "30"], ["--layers 30", "29"]),
                (["--heads", "3"], ["--heads 3", "2"]),
                (["--kv", "kivi9"], ["kivi9"]),
            ):
                self.refused(2, fragments, "study", "-m", MODEL, "--out", folder, *args)
            self.refused(1, ["/no/such/text"], "study", "-m", MODEL, "--out", folder, "--text", "/no/such/text")
            self.assertEqual(list(Path(folder).iterdir()), [])
            file = Path(folder) / "file"
            file.write_text("")
            self.refused(1, [str(file), "--out"], "study", "-m", MODEL, "--out", file / "study")

    def test_plots(self):
        module = [sys.executable, "-m", "libkivi.plots"]
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder) / "other.json"
            other.write_text("{}")
            result = subprocess.run([*module, other], cwd=ROOT / "python", capture_output=True, text=True)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, r"\Alibkivi.plots: [^\n]+\n\Z")


if __name__ == "__main__":
    if not Path(MODEL).exists():
        print(f"{MODEL} is missing; run tools/get-model smollm2-135m")
        sys.exit(1 if os.environ.get("KIVI_REQUIRE_MODEL") else e2e_test.SKIPPED)
    unittest.main(verbosity=2)
