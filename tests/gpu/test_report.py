"""The report of `make gpu-check`, which needs no GPU itself, and that its checks are left out of an ordinary run."""

import tomllib
from pathlib import Path

from tests.gpu.conftest import as_text

ROOT = Path(__file__).parents[2]


def test_the_report_names_versions_gpus_outcomes_and_figures() -> None:
    found = {
        "versions": {"torch": "2.13.0", "flash-attn": "-"},
        "gpus": ["NVIDIA H200, 143771 MiB, 570.1"],
        "checks": [
            {"check": "test_a", "outcome": "passed", "seconds": 3.5, "figures": {"mean": 0.0123456}, "why": ""},
            {"check": "test_b", "outcome": "failed", "seconds": 1.0, "figures": {}, "why": "assert 1 < 0.05\nmore"},
        ],
    }
    assert as_text(found) == (
        "torch 2.13.0\nflash-attn -\n\nNVIDIA H200, 143771 MiB, 570.1\n\n"
        "passed  test_a (3.5 s) mean=0.01235\n"
        "failed  test_b (1 s)\n        assert 1 < 0.05\n        more\n"
    )


def test_an_ordinary_run_leaves_the_checks_out() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    assert options.endswith("-m 'not gpu'")
