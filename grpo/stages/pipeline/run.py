"""Running a pipeline: each stage in a process of its own, so that the memory of engines and trainers is given back.

With several processes, every one of them runs this loop and starts its own process of each stage; they meet inside the
stages. The main process keeps the ledger.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grpo.launch import signals
from grpo.recipe.load import RecipeError
from grpo.recipe.record import check_world, write_resolved
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.stages.pipeline.graph import BASE, Node, build_graph, selected, unresolved
from grpo.stages.pipeline.ledger import Entry, Ledger, expected, set_aside
from grpo.stages.pipeline.page import write_page
from grpo.stages.run import DONE_FILE
from grpo.stages.run_folder import locked


def run_pipeline(recipe: PipelineRecipe) -> Path:
    """Run what has not finished, in order; returns the pipeline's folder.

    Raises:
        RecipeError: the graph is invalid, a stage cannot run in this many processes, or one outside first..last has not
            finished.
        SystemExit: a stage failed or a signal stopped it; it has printed why.
    """
    nodes = build_graph(recipe)
    with locked(recipe):
        return _run(recipe, nodes, selected(nodes, recipe.first, recipe.last))


def _run(recipe: PipelineRecipe, nodes: list[Node], wanted: set[str]) -> Path:
    ledger, is_main = Ledger(recipe.output_dir), os.environ.get("RANK", "0") == "0"
    if is_main:
        write_resolved(recipe, recipe.output_dir)
    # Read before the first stage starts: from then on, only the main process would see what it writes.
    found = {node.name: ledger.read(node) for node in nodes}
    entries = dict[str, Entry]()
    for node in nodes:
        entries[node.name] = expected(node, recipe.base, {name: entry.identity for name, entry in entries.items()})
    results = {BASE: recipe.base}
    for name, before in found.items():
        if before is not None and before.identity == entries[name].identity and _exists(before.result):
            results[name] = str(before.result)
    finished = results.keys() & wanted
    _check_start(recipe, [node for node in nodes if node.name in wanted - finished], {*wanted, *results})
    signals.defer()
    for index, node in enumerate(nodes):
        if node.name not in wanted:
            continue
        told = ""
        if node.name in finished:
            told = f"finished, {results[node.name]}"
        elif missing := [name for name in node.inputs if name not in results]:
            told = f"left for later: {', '.join(missing)} has not finished"
        else:
            entry, before = entries[node.name], found[node.name]
            results[node.name] = _run_stage(recipe, node, results, entry, before, ledger if is_main else None, index)
        if is_main:
            if told:
                print(f"== {node.name}: {told}", flush=True)
            write_page(recipe.output_dir, nodes, results)
    return recipe.output_dir


def _check_start(recipe: PipelineRecipe, waiting: list[Node], available: set[str]) -> None:
    """Refuse now what a stage would be refused for when its turn comes. An evaluation may wait for its inputs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for node in waiting:
        missing = [name for name in node.inputs if name not in available]
        if missing and not node.is_evaluation:
            raise RecipeError(
                f"stages.{node.name}: reads from {', '.join(missing)}, which has not finished. Run that first, or "
                f"leave out --stage and --from."
            )
        stage = node.recipe(unresolved(recipe.base, node.inputs))
        try:
            check_world(stage, world)
        except RecipeError as error:
            raise RecipeError(f"stages.{node.name}: {error}") from None


def _run_stage(
    recipe: PipelineRecipe,
    node: Node,
    results: dict[str, str],
    entry: Entry,
    before: Entry | None,
    ledger: Ledger | None,
    index: int,
) -> str:
    """Run one stage to its end; returns the folder it wrote. ledger: None in all but the main process."""
    allowed = node.recipe(results).allow_changes
    resume = before is not None and node.resumes and entry.continues(before, allowed)
    if ledger is not None:
        print(f"== {node.name}: stage {node.stage}{', continued' if resume else ''}", flush=True)
        if before is not None and not (resume and before.result is None):
            why = "it had not finished" if before.result is None else "its folder is gone"
            print(f"   runs again: {'; '.join(entry.changes(before)) or why}", flush=True)
        if not resume and (aside := set_aside(node.folder)):
            print(f"   the earlier folder is now {aside}", flush=True)
        ledger.write(node, entry)
    stage = node.recipe(results, resume=resume)
    with tempfile.TemporaryDirectory() as scratch:
        # Each process reads the file that it wrote: it need not wait for the main one, nor sees an earlier file.
        folder = recipe.output_dir / "recipes" if ledger is not None else Path(scratch)
        write_resolved(stage, folder)
        file = (folder / "recipe.yaml").rename(folder / f"{node.name}.yaml")
        code = _child([sys.executable, "-m", "grpo", "train", str(file)], index)
    if code:
        sys.exit(code)
    result = json.loads((node.folder / DONE_FILE).read_text(encoding="utf-8"))["result"]
    if ledger is not None:
        ledger.write(node, Entry(entry.values, entry.inputs, result))
    return result


def _child(command: list[str], index: int) -> int:
    """Run a command, forwarding signals to it; returns its exit code as a shell shows it."""
    environment = {**os.environ, signals.LAUNCHER: str(os.getpid()), signals.WITHIN_PIPELINE: "1"}
    environment.setdefault("ACCELERATE_MIXED_PRECISION", "no")  # so that it does not launch processes itself
    if "MASTER_PORT" in environment:  # a rendezvous of its own: an earlier stage has used the launcher's
        environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + 1 + index)
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    child = subprocess.Popen(command, env=environment)
    forwarded = 0
    while child.poll() is None:
        if (number := signals.received()) and not forwarded:
            child.send_signal(number)
            forwarded = number
        time.sleep(0.1)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _exists(result: str | None) -> bool:
    return result is not None and Path(result).exists()
