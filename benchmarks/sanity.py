"""The sanity criterion of 2510.26788 on the embedded base: what it can learn, it must learn.

    python benchmarks/sanity.py                     # must pass: exit status 0
    python benchmarks/sanity.py --broken sign       # must fail: 1
    python benchmarks/sanity.py --broken shift

Problems that the base solves in 20 to 80% of its samples can all be learnt by heart. A correct algorithm brings the
training accuracy on them above 95%; one that does not is broken, whatever its curves look like. `--broken` breaks the
training on purpose, to show that the criterion notices: `sign` negates the advantages, `shift` trains every token with
the log-prob of its neighbour. Overrides come last: `algorithm.loss_type=gspo algorithm.steps_per_generation=4`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "r1_zero.yaml"
LOW, HIGH, ENOUGH = 0.2, 0.8, 0.95
BATCH = 64  # problems sampled at once


def select(output: Path, count: int, samples: int) -> None:
    """Write `count` problems of the recipe's training stream that the base solves in 20 to 80% of its samples."""
    from grpo.recipe.load import load_recipe
    from grpo.stages import parts
    from grpo.stages.collect import score
    from grpo.stages.problems import stream_of
    from rollout.engines.base import load_tokenizer

    recipe: Any = load_recipe(RECIPE)
    stream = stream_of(
        recipe.data, load_tokenizer(recipe.model.model_name_or_path, None, False), seed=recipe.trainer.seed
    )
    rewards = parts.rewards(recipe.rewards[:1], num_workers=2, timeout=60.0)
    model_len = recipe.max_model_len
    engine = parts.engine(recipe.rollout.engine, recipe.rollout, recipe.model, max_model_len=model_len, device="cpu")
    sampling = replace(recipe.rollout_sampling(0), num_generations=samples)
    found, asked = [], 0
    with closing(rewards), closing(engine):
        while len(found) < count:
            for group in score(stream.take(BATCH), engine, rewards, sampling, lambda _: nullcontext()):
                rate = statistics.mean(group.rewards)
                if LOW <= rate <= HIGH:
                    problem = group.group.problem
                    found.append({"prompt": problem.prompt, **problem.columns, "pass_rate": rate})
            asked += BATCH
            print(f"{len(found)} of {asked} problems are solved in {LOW:.0%} to {HIGH:.0%} of {samples} samples")
    output.write_text("".join(json.dumps(row) + "\n" for row in found[:count]), encoding="utf-8")


def break_training(how: str) -> None:
    """Put a fault into this process's training."""
    from grpo.algorithm import plan
    from grpo.learner import scoring

    if how == "sign":
        estimate = plan.estimate_advantages
        plan.estimate_advantages = lambda rewards, algorithm: -estimate(rewards, algorithm)
    else:
        collate = scoring.collate

        def shifted(*arguments: Any, **options: Any) -> Any:
            batch = collate(*arguments, **options)
            return replace(batch, targets=batch.targets.roll(1))

        scoring.collate = shifted


def train(folder: Path, problems: Path, steps: int, broken: str, overrides: list[str]) -> None:
    """The recipe on these problems alone, without held-out evaluation; when broken, without its guard on mismatch."""
    from grpo.recipe.load import load_recipe
    from grpo.stages.run import run

    if broken:
        break_training(broken)
    run(
        load_recipe(
            RECIPE,
            [
                "data.task=null",
                f"data.dataset_name={problems.resolve()}",
                f"trainer.output_dir={folder}",
                f"trainer.max_steps={steps}",
                "trainer.save_steps=0",
                "evaluation={num_problems: 0}",
                *(["algorithm.max_logp_difference=1e9"] if broken else []),
                *overrides,
            ],
        )
    )


def report(folder: Path, problems: int, overrides: list[str]) -> bool:
    """Print the training accuracy, pass by pass; whether the last pass is above 95%."""
    from grpo.recipe.load import load_recipe
    from grpo.report.records import METRICS_FILE, read_rows

    recipe: Any = load_recipe(RECIPE, overrides)
    rows = [row for row in read_rows(folder / METRICS_FILE) if "rewards/countdown/mean" in row]
    per_pass = max(1, round(problems / recipe.problems_per_rollout))  # rollouts
    accuracy = [row["rewards/countdown/mean"] for row in rows]
    passes = [statistics.mean(accuracy[i : i + per_pass]) for i in range(0, len(accuracy), per_pass)]
    print("training accuracy by pass over the problems:", " ".join(f"{value:.3f}" for value in passes))
    passed = passes[-1] > ENOUGH
    print(f"{'PASSED' if passed else 'FAILED'}: {passes[-1]:.3f} in the last pass, and {ENOUGH} is asked for.")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sanity"))
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32, help="per problem, for its pass rate")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps")
    parser.add_argument("--broken", choices=["sign", "shift"])
    parser.add_argument("--phase", choices=["select", "train"], help=argparse.SUPPRESS)  # in processes of their own
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    problems = options.folder / f"problems_{options.problems}_{options.samples}.jsonl"
    out = options.folder / (options.broken or "right")
    if options.phase == "select":
        select(problems, options.problems, options.samples)
    elif options.phase == "train":
        train(out, problems, options.steps, options.broken or "", options.overrides)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        phases = ["train"] if problems.exists() else ["select", "train"]
        for phase in phases:
            subprocess.run([sys.executable, __file__, "--phase", phase, *sys.argv[1:]], check=True)
        sys.exit(0 if report(out, options.problems, options.overrides) else 1)


if __name__ == "__main__":
    main()
