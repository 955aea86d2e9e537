"""An evaluation from recipe to results.

    tasks -> prompts -> (missing samples) -> engine.generate -> grader -> samples.jsonl
                                                                               |
                                results.json, results.md, page  <--  summary  <-+

Each sample is its own request, seeded by the run's seed, the problem and the sample's number alone. So an interrupted
evaluation resumes with the missing samples, a finished one can be extended with more samples or problems, and two
checkpoints are compared under the same random numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from grpo.evaluation.config import EvalRecipe
from grpo.evaluation.engines import ReferenceEngine, context_length, fingerprint, load_engine
from grpo.evaluation.results.page import PAGE_FILE, write_page
from grpo.evaluation.results.samples import SampleWriter, merge_samples, write_manifest, write_problems
from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import summarize_task
from grpo.evaluation.results.table import markdown
from grpo.evaluation.resume import resume
from grpo.evaluation.timing import Clock, merge_timing
from grpo.evaluation.work import Work, prepare
from grpo.launch.processes import PATIENCE
from grpo.recipe.errors import RefusedError
from grpo.recipe.record import write_resolved
from grpo.report.lock import lock, owner
from grpo.report.progress import Progress
from grpo.report.records import Row
from rollout.engines.base import Engine, request_seed
from rollout.types import Problem

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_evaluation(recipe: EvalRecipe) -> Results:
    """Evaluate a checkpoint, write everything to `output` and return the results.

    Raises:
        ValueError: a task, column, template or model is wrong; nothing has been generated yet.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    processes = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    with _locked(recipe.output_dir, processes):
        return _run(recipe, processes)


@contextmanager
def _locked(folder: Path, processes: "Accelerator") -> Iterator[None]:
    """Keep other evaluations out of the folder; ValueError, in all processes, if one is running there."""
    held, problem = None, ""
    if processes.is_main_process:
        try:
            held = lock(folder)
        except OSError as error:
            problem = f"output={str(folder)!r} cannot be written to ({error.strerror}). Choose another folder."
        else:
            problem = (
                ""
                if held is not None
                else (
                    f"output={str(folder)!r} is in use by process {owner(folder).get('pid')}, and only one evaluation "
                    "may write to a folder. Wait for it, or choose another output."
                )
            )
    if problem := gather_object([problem])[0]:
        raise ValueError(problem)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _run(recipe: EvalRecipe, processes: "Accelerator") -> Results:
    folder = recipe.output_dir
    work = prepare(recipe)
    resume(recipe, work)
    processes.wait_for_everyone()  # every process has read the folder before one writes to it
    if processes.is_main_process:
        _write_inputs(recipe, work)
    try:
        if any(w.missing() for w in work):
            with closing(_engine(recipe, work, processes.device)) as engine:
                for w in work:
                    generate_and_grade(w, engine, processes, folder)
        processes.wait_for_everyone()
        if processes.is_main_process:
            rows = merge_samples(folder, [problem.id for w in work for problem in w.task.problems])
            _write_results(recipe, work, rows)
        processes.wait_for_everyone()
        return Results.read(folder)
    finally:
        for w in work:
            w.grader.close()


def run_stage(recipe: EvalRecipe) -> Path:
    """Run `run_evaluation` as a recipe's stage: print the table and return the folder.

    Raises:
        grpo.recipe.errors.RefusedError: the data, the model or the folder cannot give a right result.
    """
    try:
        results = run_evaluation(recipe)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    if os.environ.get("RANK", "0") == "0":
        print(markdown(results.model, results.protocol, results.tasks))
        print(f"page: {results.folder / PAGE_FILE}")
    return results.folder


def _write_inputs(recipe: EvalRecipe, work: Sequence[Work]) -> None:
    """Write what is about to be sampled: recipe.yaml, problems.jsonl and manifest.json."""
    folder = recipe.output_dir
    write_resolved(recipe, folder)
    write_problems(folder, [(w.task.name, w.task.problems) for w in work])
    write_manifest(folder, fingerprint(recipe.model), {w.task.name: w.manifest() for w in work})


def _engine(recipe: EvalRecipe, work: Sequence[Work], device: Any) -> Engine:
    if recipe.engine.name == "reference":
        return ReferenceEngine({key: text for w in work for key, text in w.task.references.items()})
    longest = max(len(prompt.token_ids) for w in work for prompt in w.prompts)
    return load_engine(recipe, max_model_len=context_length(recipe, longest), device=device)


def generate_and_grade(w: Work, engine: Engine, processes: "Accelerator", folder: Path) -> None:
    """Generate, grade and write this process's share of a task's missing samples."""
    requests = w.missing(processes.process_index, processes.num_processes)
    texts = dict(zip((prompt.problem.id for prompt in w.prompts), w.texts, strict=True))
    problems = {prompt.problem.id: prompt.problem for prompt in w.prompts}
    seeds = {request.problem.id: request_seed(w.sampling, request) for request in requests}
    clock = Clock()
    with (
        SampleWriter(folder, processes.process_index) as writer,
        Progress(w.task.name, len(requests), shown=processes.is_main_process) as progress,
    ):
        for graded in w.grader.grade(clock.over(engine.generate(requests, w.sampling))):
            request_id = graded.group.problem.id
            problem_id, _, sample = request_id.rpartition("#")
            rows = graded.rows(
                task=w.task.name,
                problem_id=problem_id,
                first_sample=int(sample),
                seed=seeds[request_id],
                prompt=texts[problem_id],
                reference_answer=w.grader.reference_answer(problems[problem_id]),
            )
            writer.write(rows)
            progress.advance(rows)
    shares = gather_object([clock.timing()])
    if any(share["generated_tokens"] for share in shares):
        w.timing = merge_timing(shares)


def _write_results(recipe: EvalRecipe, work: Sequence[Work], rows: Sequence[Row]) -> None:
    """Summarize the samples and write results.json, results.md and index.html."""
    tasks, reported = {}, []
    for w in work:
        problems = {problem.id: problem for problem in w.task.problems}
        mine = [row for row in rows if row["problem_id"] in problems and row["sample"] < w.num_samples]
        if missing := len(problems) * w.num_samples - len(mine):
            raise ValueError(
                f"{w.task.name}: {missing} samples are missing. Run the same evaluation again to generate them; all "
                "processes must share the output folder."
            )
        reported += mine
        config = w.task.config
        tasks[w.task.name] = {
            **summarize_task(mine, problems, groups=config.groups, grader=w.grader),
            "reward": config.reward,
            "options": w.grading_options,
            "timing": w.timing,
            "dataset": {
                "name": config.dataset_name or config.task,
                "split": config.split,
                "files": config.dataset_files,
                "where": config.where,
                "revision": None if recipe.data_dir else config.dataset_revision,
                "sha": _sha(w.task.problems),
            },
        }
    results = Results(recipe.model.model_name_or_path, _protocol(recipe), tasks, recipe.output_dir)
    results.write()
    write_page(results, reported)


def _protocol(recipe: EvalRecipe) -> str:
    sampling = recipe.sampling
    samples = f", {sampling.num_samples} samples" if sampling.num_samples else ""
    return (
        f"{recipe.protocol}: template {recipe.template}, temperature {sampling.temperature:g}, "
        f"top_p {sampling.top_p:g}{samples}, up to {sampling.max_completion_length} tokens, seed {sampling.seed}, "
        f"engine {recipe.engine.name}"
    )


def _sha(problems: Sequence[Problem]) -> str:
    """A hash of prompts and columns, to check that two evaluations used the same problems."""
    text = json.dumps([[p.id, p.prompt, p.columns] for p in problems], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
