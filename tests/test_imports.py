"""Which way imports point, and what merely starting Python costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"grpo", "rewards", "rollout"}
# Imported inside the functions and files that need them: the rest also runs where they are not installed.
OPTIONAL = {"vllm", "trl", "datasets", "math_verify", "reasoning_gym"}
LIGHT = ["rollout/types.py", "rollout/data/*.py", "rewards/**/*.py"]


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; with `top_level`, when it is imported itself."""
    tree = ast.parse(path.read_text())
    for node in _at_import(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield node.module or ""


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def files(*patterns: str) -> list[Path]:
    found = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    assert found
    return found


def test_rollout_imports_no_other_room() -> None:
    for path in files("rollout/**/*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in {"grpo", "rewards"}}, path


def test_rewards_import_only_the_values_of_rollout() -> None:
    for path in files("rewards/**/*.py"):
        ours = {name for name in imports(path) if name.split(".")[0] in OURS}
        assert {name for name in ours if not name.startswith("rewards")} <= {
            "rollout.types",
            "rollout.support.names",
            "rollout.support.loading",
            "rollout.support.http",
        }, path


def test_scoring_and_problems_need_no_torch() -> None:
    for path in files(*LIGHT):
        if path.name != "reward_model.py":
            heavy = {"torch", "transformers", "accelerate"}
            assert not {name for name in imports(path, top_level=True) if name.split(".")[0] in heavy}, path


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for path in files("grpo/**/*.py", "rewards/**/*.py", "rollout/**/*.py"):
        if path != ROOT / "rollout/engines/vllm.py":
            assert not {name for name in imports(path, top_level=True) if name.split(".")[0] in OPTIONAL}, path


def test_only_rollout_knows_vllm() -> None:
    for path in files("grpo/**/*.py", "rewards/**/*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "vllm"}, path


@pytest.mark.parametrize(
    ("program", "absent"),
    [("pass", ["grpo", "torch", "yaml"]), ("import grpo", ["torch", "yaml", "pydantic", "grpo.recipe.load"])],
)
def test_starting_python_loads_nothing(program: str, absent: list[str]) -> None:
    code = f"import sys\n{program}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checking_a_recipe_loads_no_torch() -> None:
    code = (
        "import sys; from grpo.recipe.load import load_recipe; load_recipe('recipes/r1_zero_671b.yaml'); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
