"""`make gpu-check` writes what every check found to gpu-report.json and gpu-report.txt, to be sent with a question."""

import json
import platform
import subprocess
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("torch", "vllm", "transformers", "accelerate", "datasets", "trl", "peft")
PACKAGES += ("flash-attn", "flash-attn-4", "flashinfer-python")
_checks: list[dict[str, Any]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") and (report.when == "call" or report.outcome != "passed"):
        why = "" if report.outcome == "passed" else str(report.longrepr)[-2000:]
        _checks.append(
            {
                "check": item.name,
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                "figures": dict(report.user_properties),
                "why": why,
            }
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _checks:
        return
    found = {"versions": _versions(), "gpus": _gpus(), "checks": _checks}
    folder = Path(session.config.rootpath)
    (folder / "gpu-report.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "gpu-report.txt").write_text(as_text(found))
    print(f"\nReport: {folder / 'gpu-report.txt'} and gpu-report.json")


def as_text(found: dict[str, Any]) -> str:
    """The report for a reader: versions, GPUs, and a line per check with its figures."""
    lines = [f"{name} {value}" for name, value in found["versions"].items()] + ["", *found["gpus"], ""]
    for check in found["checks"]:
        figures = ", ".join(f"{name}={value:.4g}" for name, value in check["figures"].items())
        lines.append(f"{check['outcome']:8}{check['check']} ({check['seconds']:g} s) {figures}".rstrip())
        lines += [f"        {line}" for line in check["why"].splitlines()]
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return versions


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
