"""reasoning_gym's own scorers, selected by the task that generated the problem.

Some of them evaluate the answer with Python's eval, or with sympy's parse_expr, which uses eval. They are only given
answers that are plain data or arithmetic of moderate size. All run in worker processes with limits on CPU time and
memory: sympy may simplify for hours, and their own `except:` would catch any exception that is to stop them.
"""

import ast
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from rewards.runner.load import checked_by
from rewards.runner.workers import WorkerError, WorkerPool
from rewards.text import Text, answer_text, completion_text, reference_text

_EVALUATE = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
_SYMPY = frozenset(
    {"countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
)
_UNUSABLE = {  # task -> what its scorer does wrong
    "coin_flip": "gives 0 the full score, as a prefix of every probability",
    "game_of_life_halting": "accepts any text, as bool(answer) is always true",
}
_WITHOUT_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
_CPU_SECONDS = 2  # per answer; the slowest right ones, integrals, take 0.2
_MEMORY_MB = 4096
_MAX_WORKERS = 4
_MAX_LENGTH = 4000
_MAX_EXPONENT = 30
_FUNCTIONS = frozenset({"sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "ln", "sqrt"})
_OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


def _check(columns: Mapping[str, Any]) -> str | None:
    if find_spec("reasoning_gym") is None:
        raise ValueError("reward 'reasoning_gym' needs its package. Install it: pip install reasoning-gym")
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]  # an extra

    task = _task(columns["metadata"])
    if task not in DATASETS:
        return f"metadata names no task of reasoning_gym in source_dataset, but {str(task)[:40]!r}"
    if task in _UNUSABLE:
        return f"reasoning_gym's scorer of {task} {_UNUSABLE[task]}"
    return "no reference answer" if _reference(columns["answer"]) is None and task not in _WITHOUT_ANSWER else None


@checked_by(_check)
def reasoning_gym(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    answer: Sequence[Any],
    metadata: Sequence[dict[str, Any]],
    *,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """The task scorer's score for the text of `<answer>`: 0.0 to 1.0, often with partial credit.

    0.0 without an answer, and for one that the scorer cannot read, or not within its limits. None if the problem names
    no known task, or one whose scorer pays for nothing, or lacks the reference answer its scorer needs.

    `answer` and `metadata` are the columns of a reasoning_gym entry; metadata["source_dataset"] names the task.
    Needs the package reasoning-gym (2505.24760).
    """
    rewards: list[float | None] = []
    scored: dict[int, tuple[str, str, dict[str, Any]]] = {}
    for prompt, completion, reference, about in zip(prompts, completions, answer, metadata, strict=True):
        text = answer_text(completion_text(completion, completion_prefix))
        if _check({"answer": reference, "metadata": about}) is not None:
            rewards.append(None)
            continue
        task = about["source_dataset"]
        if text and _is_harmless(text, task):
            entry = {"question": prompt, "answer": _reference(reference), "metadata": about}
            scored[len(rewards)] = task, text, entry
        rewards.append(0.0)
    for index, score in zip(scored, _pool().map(scored.values()), strict=True):
        rewards[index] = 0.0 if isinstance(score, WorkerError) else score
    return rewards


@lru_cache(maxsize=1)
def _pool() -> WorkerPool:
    """The workers of this process."""
    return WorkerPool(
        "rewards.answers.gym_scorers:scorer",
        setup="reasoning_gym",
        cpu_seconds=_CPU_SECONDS,
        memory_mb=_MEMORY_MB,
        timeout=15 * _CPU_SECONDS,
        max_workers=min(len(os.sched_getaffinity(0)), _MAX_WORKERS),
    )


def _task(metadata: Any) -> Any:
    return metadata.get("source_dataset") if isinstance(metadata, Mapping) else None


def _reference(answer: Any) -> str | None:
    """The reference answer as the text a scorer expects; white space counts, as in a drawing."""
    return answer if isinstance(answer, str) and answer.strip() else reference_text(answer)


def _is_harmless(text: str, task: str) -> bool:
    """Whether the task's scorer may see this text: it takes any text, or this one is safe to evaluate."""
    if task == "complex_arithmetic":
        return "nan" not in text.lower()  # its scorer returns min(1.0, nan), which is 1.0
    if task not in _EVALUATE | _SYMPY:
        return True
    if len(text) > _MAX_LENGTH:
        return False
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):  # eval cannot run it either; sympy accepts more than Python, such as 9!!
        return task in _EVALUATE
    except (MemoryError, RecursionError):
        return False
    return _is_plain(tree)


def _is_plain(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() | str()) | ast.Name():
            return True
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return all(map(_is_plain, items))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_plain(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return name in _FUNCTIONS and all(map(_is_plain, arguments))
        case ast.BinOp(left=left, op=operation, right=right) if isinstance(operation, _OPERATIONS):
            if isinstance(operation, ast.Pow) and not _is_small(left, right):
                return False
            return all(not _is_sequence(side) and _is_plain(side) for side in (left, right))
        case _:
            return False


def _is_small(base: ast.expr, exponent: ast.expr) -> bool:
    """Whether a power has a moderate exponent and no further power on either side."""
    nodes = [*ast.walk(base), *ast.walk(exponent)]
    numbers = [node.value for node in ast.walk(exponent) if isinstance(node, ast.Constant)]
    return not any(isinstance(node, ast.Pow) for node in nodes) and all(
        isinstance(number, int | float) and abs(number) <= _MAX_EXPONENT for number in numbers
    )


def _is_sequence(node: ast.expr) -> bool:
    """Whether a multiplication would repeat it: "x" * 10**9."""
    return isinstance(node, ast.List | ast.Tuple) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
