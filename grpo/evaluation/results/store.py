"""An evaluation's results on disk: results.json, and results.md for people."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from grpo.evaluation.results.table import markdown

RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"


@dataclass(frozen=True, slots=True)
class Results:
    """An evaluation's metrics by task, and how they were obtained.

    Results(
        model="recipes/v3_base",
        protocol="deepseek-r1: template chat, temperature 0.6, top_p 0.95, up to 32768 tokens, seed 42",
        tasks={"math500": {
            "metrics": {"pass@1": 0.84, …},                # summary.summarize
            "groups": {"level": {"1": {…}, "2": {…}}},     # the same for each subject, level, …
            "unreadable": {"math500/3": "…"},              # problems that cannot be graded, and why
            "reward": "accuracy", "options": {},           # the grader
            "timing": {"generated_tokens": 51200, "seconds": 60.1, "tokens_per_second": 852.0, …},
            "dataset": {"name": "HuggingFaceH4/MATH-500", "split": "test", "files": [], "where": {},
                        "revision": "6e4e…", "sha": "9c0f…"},
        }},
        folder=Path("runs/eval"),
    )
    """

    model: str
    protocol: str
    tasks: dict[str, dict[str, Any]]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's results; ValueError if it has none, or they are not whole."""
        path = folder / RESULTS_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {RESULTS_FILE}, so it is not a finished evaluation. Name the output folder of one."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is not whole ({error}). Run the same grpo eval again: it samples nothing twice."
            ) from error
        return cls(values["model"], values["protocol"], values["tasks"], folder)

    def write(self) -> None:
        values = {"model": self.model, "protocol": self.protocol, "tasks": self.tasks}
        _replace(self.folder / RESULTS_FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        _replace(self.folder / TABLE_FILE, markdown(self.model, self.protocol, self.tasks))


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
