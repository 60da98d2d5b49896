"""python -m libkivi.plots FILE.json [--out DIR]: the plots of a JSON file that kivi wrote, by what is in it."""

import argparse
import importlib
import json
import sys
from pathlib import Path

# Modules, whose plot(document, folder) writes the plots of a kind of document and gives their paths, and what tells the kind.
KINDS = {
    "study": lambda document: "kivi_study" in document,
    "heatmap": lambda document: "task" in document and all("cells" in r for r in document.get("results") or [{}]),
}


class Failure(Exception):
    """What went wrong and what to do, in one line."""


def read(path):
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Failure(f"{path}: is not JSON ({error})") from None
    for module, is_of_kind in KINDS.items():
        if isinstance(document, dict) and is_of_kind(document):
            return document, module
    raise Failure(f"{path}: holds nothing to plot; give what kivi study, or kivi eval passkey or needle, wrote")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m libkivi.plots", description="Plots of a JSON file that kivi wrote.")
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: where the file is")
    options = parser.parse_args(arguments)
    try:
        document, module = read(options.file)
        folder = options.out or options.file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            import matplotlib

            matplotlib.use("Agg")
            for path in importlib.import_module(f"libkivi.plots.{module}").plot(document, folder):
                print(path)
        except ImportError as error:
            raise Failure(f"{error.name} is missing; pip install matplotlib") from None
        except OSError as error:
            raise Failure(f"{folder}: cannot be written ({error.strerror})") from None
    except Failure as failure:
        print(f"libkivi.plots: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
