"""Measure the mathematical verifier. Each part is one command that writes a markdown page:

python -m benchmarks.verifier labelled --output runs/labelled.md
python -m benchmarks.verifier properties --pairs 24000
python -m benchmarks.verifier fuzz --answers 100000
python -m benchmarks.verifier generations
python -m benchmarks.verifier speed
"""

import argparse
from pathlib import Path

from benchmarks.verifier import fuzz, properties, report, speed
from benchmarks.verifier.sets import generations, labelled


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verifier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["labelled", "properties", "fuzz", "generations", "speed"])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with verifier/, generations/ and eval/"
    )
    parser.add_argument("--output", type=Path, help="markdown file to write")
    parser.add_argument("--pairs", type=int, default=24_000)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pages = {
        "labelled": lambda: labelled.report(options.data),
        "properties": lambda: properties.report(options.data, options.pairs, options.seed),
        "fuzz": lambda: fuzz.report(options.data, options.answers, options.seed),
        "generations": lambda: generations.report(options.data),
        "speed": lambda: speed.report(options.data, options.seed),
    }
    report.write(pages[options.part](), options.output)


if __name__ == "__main__":
    main()
