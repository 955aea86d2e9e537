"""Markdown tables, printed and written to a file."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows])


def code(text: str, most: int = 90) -> str:
    """A text for a table cell: one line, shortened in the middle, bars and backticks escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    text = text.replace("|", "\\|").replace("`", "'")
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    return f"`{text}`" if text.strip() else "(empty)"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(text: str, output: Path | None) -> None:
    print("\n" + text, flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
