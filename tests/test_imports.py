"""The house rules that code can check: import directions, no circles, sizes, and what starting Python loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("grpo", "rewards", "rollout")

# A room may import itself and the rooms before it; rooms in the same set do not import each other.
# A package's own __init__ comes last: it may import every room, and no room imports it.
ROOMS = {
    "grpo": [
        {"launch", "recipe"},
        {"report"},
        {"algorithm"},
        {"model"},
        {"learner"},
        {"evaluation"},
        {"stages"},
        {"estimate"},
        {"__main__"},
        {"__init__"},
    ],
    "rewards": [{"text"}, {"runner"}, {"answers", "programs", "style", "models", "random_reward"}, {"__init__"}],
    "rollout": [{"types", "support"}, {"data", "engines"}, {"__init__"}],
}
# What a package may import from the other two, as prefixes of module names.
ACROSS = {"grpo": ("rewards.", "rollout."), "rewards": ("rollout.types", "rollout.support."), "rollout": ()}

# Imported inside the functions that need them, so that everything else runs without them.
OPTIONAL = {
    "math_verify",
    "py3langid",
    "reasoning_gym",
    "sortedcontainers",
    "tensorboard",
    "trackio",
    "vllm",
    "wandb",
}
TORCH = {"accelerate", "torch", "transformers"}


def files(*folders: str) -> list[Path]:
    """All Python files below the folders."""
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    """`rollout.data.tasks` for rollout/data/tasks.py, `rollout.data` for rollout/data/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in files(*PACKAGES)}


def imported(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Modules a file imports, wherever the import stands; with `top_level`, not in functions or under TYPE_CHECKING.

    `from package import name` gives `package.name` where that is one of our modules, else `package`.
    """
    for node in _top_level(tree(path)) if top_level else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: write imports in full"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _top_level(child)


def assert_no_import(of: set[str], paths: list[Path], *, top_level: bool = False) -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imported(path, top_level=top_level)
        if name.partition(".")[0] in of
    ]
    assert not found, "\n".join(found)


GRAPH = {name: sorted(set(imported(path)) & set(MODULES)) for name, path in MODULES.items()}


def room(module: str) -> tuple[str, str]:
    """("rollout", "data") for `rollout.data.tasks`."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0] or "__init__"


LEVELS = {(package, name): i for package, rows in ROOMS.items() for i, names in enumerate(rows) for name in names}


def may_import(importer: str, module: str) -> bool:
    here, there = room(importer), room(module)
    if here[0] != there[0]:
        return module.startswith(ACROSS[here[0]])
    return here == there or LEVELS[here] > LEVELS[there]


def test_every_module_is_in_a_room() -> None:
    homeless = [name for name in MODULES if room(name) not in LEVELS]
    assert not homeless, "\n".join(homeless)


def test_imports_point_one_way() -> None:
    edges = [(importer, module) for importer, modules in GRAPH.items() for module in modules]
    backwards = [f"{importer} -> {module}" for importer, module in edges if not may_import(importer, module)]
    assert not backwards, "\n".join(backwards)


def shortest_circle(start: str) -> list[str] | None:
    """The shortest way along imports from a module back to itself."""
    paths, seen = [[start]], set()
    for path in paths:  # grows while we walk it: breadth first
        for module in GRAPH[path[-1]]:
            if module == start:
                return [*path, start]
            if module not in seen:
                seen.add(module)
                paths.append([*path, module])
    return None


def test_no_imports_in_circles() -> None:
    circles = {frozenset(circle): circle for module in GRAPH if (circle := shortest_circle(module))}
    assert not circles, "\n".join(" -> ".join(circle) for circle in circles.values())


def test_only_the_engines_import_vllm() -> None:
    engines = ROOT / "rollout/engines"
    assert_no_import({"vllm"}, [path for path in MODULES.values() if engines not in path.parents])


def test_optional_packages_are_imported_where_they_are_used() -> None:
    vllm_engine = ROOT / "rollout/engines/vllm.py"
    assert_no_import(OPTIONAL, [path for path in MODULES.values() if path != vllm_engine], top_level=True)


def test_scoring_and_problems_need_no_torch() -> None:
    light = [*files("rewards", "rollout/data", "rollout/support"), ROOT / "rollout/types.py"]
    reward_model = ROOT / "rewards/models/reward_model.py"
    assert_no_import(TORCH, [path for path in light if path != reward_model], top_level=True)


CHECK = "from grpo.recipe.load import load_recipe; load_recipe('recipes/r1_zero_671b.yaml')"


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        pytest.param("pass", ["grpo", "torch", "yaml", "ruamel"], id="starting Python"),
        pytest.param("import grpo", ["torch", "yaml", "ruamel", "pydantic", "grpo.recipe"], id="importing grpo"),
        pytest.param("import grpo.estimate.layout.show, grpo.model.fp8", ["peft", "bitsandbytes"], id="planning"),
        pytest.param(CHECK, ["torch", "transformers"], id="checking a recipe"),
    ],
)
def test_what_is_not_needed_is_not_loaded(program: str, absent: list[str]) -> None:
    code = f"import sys\n{program}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def assert_at_most(limit: int, sizes: dict[str, int]) -> None:
    above = [f"{what}: {size}, at most {limit}" for what, size in sizes.items() if size > limit]
    assert not above, "\n".join(above)


def test_folders_stay_small() -> None:
    folders = sorted({path.parent for path in files(*PACKAGES, "tests", "benchmarks")})
    counts = {str(folder.relative_to(ROOT)): sum(path.is_file() for path in folder.iterdir()) for folder in folders}
    assert_at_most(12, counts)


def test_files_stay_short() -> None:
    paths = files(*PACKAGES, "recipes", "tests", "benchmarks")
    assert_at_most(400, {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths})


def test_functions_stay_short() -> None:
    lines = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in files(*PACKAGES, "recipes")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert_at_most(80, lines)
