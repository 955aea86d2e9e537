"""Held-out evaluation during training: the same tasks, graders and metrics as `grpo eval`, on the run's own engine.

Samples come in groups rather than as single requests because the run's rewards may compare completions within a group.
It uses no random state of its own: with the same `sampling.seed`, every checkpoint gets the same problems and seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.evaluation.grading import Grader, RewardGrader, build_grader, check_columns
from grpo.evaluation.results.summary import by_problem, summarize
from grpo.evaluation.tasks.load import Task, load_task
from grpo.evaluation.tasks.prompts import task_prompts
from grpo.recipe.config import OnPolicyRecipe
from grpo.report.records import Row
from rewards.runner.score import Rewards
from rollout.engines.base import Engine, request_seed
from rollout.types import Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Gather = Callable[[list[Row]], list[Row]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Evaluation({"eval/pass@1": 0.84, …}, [sample rows, …]), identical on all processes."""

    metrics: dict[str, float]  # summary.summarize, prefixed with eval/ or eval/<task>/
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out problems and their grader; name "" for those of the run's only training source."""

    name: str
    prompts: Sequence[Prompt]
    grader: Grader
    decides: str = ""  # the run's reward that decides what is correct; "": the grader does

    @property
    def by_rewards(self) -> bool:
        """Whether the run's own rewards grade these problems."""
        return bool(self.decides)

    def evaluate(
        self,
        engine: Engine,
        sampling: Sampling,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        gather: Gather | None = None,
    ) -> Evaluation:
        """Generate and grade `sampling.num_generations` completions per prompt.

        Each process takes every num_processes-th prompt. gather: concatenates all processes' lists, on every process;
        None: accelerate's gather_object.
        """
        rows = self.samples(engine, sampling, process_index=process_index, num_processes=num_processes)
        return self.summary((gather or _gather_object)(rows) if num_processes > 1 else rows)

    def samples(
        self, engine: Engine, sampling: Sampling, *, process_index: int = 0, num_processes: int = 1
    ) -> list[Row]:
        """The graded completions of this process's prompts, every num_processes-th; no other process is waited for."""
        share = self.prompts[process_index::num_processes]
        rows: list[Row] = []
        for graded in self.grader.grade(engine.generate(share, sampling)):
            problem = graded.group.problem
            prompt = Prompt(problem=problem, token_ids=graded.group.prompt_ids)
            rows += graded.rows(
                task=self.name,
                problem_id=problem.id,
                first_sample=0,
                seed=request_seed(sampling, prompt),
                prompt=problem.prompt,
                reference_answer=self.grader.reference_answer(problem),
            )
        return rows

    def summary(self, rows: Sequence[Row]) -> Evaluation:
        """The metrics of all processes' samples."""
        place = {prompt.problem.id: index for index, prompt in enumerate(self.prompts)}
        problems = by_problem(sorted(rows, key=lambda row: place[row["problem_id"]]))
        assert [samples[0]["problem_id"] for samples in problems] == list(place), "one group per problem"
        metrics = summarize(problems, self.grader.voting, finds_answers=self.grader.finds_answers)
        if not self._is_binary(rows):
            metrics = {key: value for key, value in metrics.items() if not _needs_verdict(key)}
        prefix = f"eval/{self.name}/" if self.name else "eval/"
        return Evaluation(
            {prefix + name: value for name, value in metrics.items()}, [row for samples in problems for row in samples]
        )

    def _is_binary(self, rows: Sequence[Row]) -> bool:
        """Whether the reward that decides is 0 or 1, so that shares of correct samples mean something.

        A single source keeps pass@1 whatever its reward: above 0.5 counts as correct.
        """
        values = {row["rewards"][self.decides] for row in rows} if self.name and self.decides else set()
        return values <= {0.0, 1.0, None}


def reward_held_out(
    prompts: Sequence[Prompt],
    rewards: Rewards,
    reward: str | None,
    functions: Mapping[str, str] | None = None,
    *,
    name: str = "",
) -> HeldOut:
    """A training source's held-out problems, graded by one of the run's rewards.

    Args:
        reward: None, or a reward that does not apply to a mixture's source: the first that names it or applies to it.
        functions: reward -> the function of that name in the recipe; those passed from Python are missing.
        name: the source's name in a mixture.
    """
    if reward is not None and reward not in rewards.names:
        raise ValueError(f"evaluation.reward={reward!r} is not one of the run's rewards: {', '.join(rewards.names)}.")
    decides = deciding_reward(rewards, reward, name)
    function = (functions or {}).get(decides, decides)
    return HeldOut(name, prompts, RewardGrader(rewards, function=function, decides=decides), decides)


def deciding_reward(rewards: Rewards, reward: str | None, source: str) -> str:
    """The reward that decides what is correct (> 0.5); arguments as of `reward_held_out`, source: its `name`."""
    applicable = rewards.count_for(source) if source else rewards.names
    return reward if reward in applicable else applicable[0]


def _needs_verdict(metric: str) -> bool:
    return metric.startswith(("pass@", "cons@", "unverifiable", "no_answer"))


def task_held_out(recipe: OnPolicyRecipe, tokenizer: "PreTrainedTokenizerBase") -> list[HeldOut]:
    """The tasks in `evaluation.tasks`, under the template of `evaluation.data`, else of `data`.

    Raises:
        ValueError: a task is invalid, or has prompts longer than max_prompt_length.
    """
    config, data = recipe.evaluation, recipe.evaluation.data or recipe.data
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    found = []
    for name in config.tasks:
        task = load_task(name, data_dir=data_dir, limit=config.num_problems or None)
        check_columns(task.name, task.config.reward, task.config.options, task.problems[0].columns)
        prompts, _ = task_prompts(
            task,
            tokenizer,
            template=data.template,
            system_prompt=data.system_prompt,
            instruct=False,
            chat_template_kwargs=data.chat_template_kwargs,
        )
        _check_lengths(task, prompts, data.max_prompt_length)
        found.append(HeldOut(task.name, prompts, build_grader(task.config.reward, task.config.options)))
    return found


def _check_lengths(task: Task, prompts: Sequence[Prompt], limit: int) -> None:
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if longest > limit:
        count = sum(len(prompt.token_ids) > limit for prompt in prompts)
        raise ValueError(
            f"evaluation.tasks: {count} prompts of {task.name!r} are longer than max_prompt_length={limit}, and "
            f"dropping them would change the task. Set data.max_prompt_length={longest}."
        )


def _gather_object(rows: list[Row]) -> list[Row]:
    from accelerate.utils import gather_object

    return gather_object(rows)
