"""A run's teachers: refused if they cannot judge the student, chosen by a column of the data, asked one at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from grpo.learner.batch import Sample, attach
from grpo.learner.scoring import Batching
from grpo.learner.teacher import Teacher
from grpo.model.checks import check_model
from grpo.model.load import load_model
from grpo.recipe.stages.opd import OPDRecipe
from rollout.data.stream import ProblemStream, usable
from rollout.engines.base import load_tokenizer
from rollout.support.names import nearest
from rollout.types import Problem


class Teachers:
    """All teachers, loaded. One is on the device at a time, while it reads; afterwards one head at a time.

    mesh: the processes that they are sharded over, as the policy is.
    """

    def __init__(
        self,
        recipe: OPDRecipe,
        accelerator: Accelerator,
        *,
        tokenizer_size: int,
        batching: Batching,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.recipe = recipe
        self.divergence = recipe.algorithm.divergence
        self.teachers: dict[str, Teacher] = {}
        for name, config in recipe.teachers.items():
            source: dict[str, Any] = {"model_name_or_path": config.model_name_or_path, "revision": config.revision}
            source["quantization"] = None  # that is the student's
            model = load_model(recipe.model.model_copy(update=source), mesh=mesh)
            check_model(
                model,
                tokenizer_size=tokenizer_size,
                max_model_len=recipe.max_model_len,
                balance_bias_update_speed=0.0,
            )
            self.teachers[name] = Teacher(
                model,
                accelerator,
                temperature=recipe.teacher_temperature,
                batching=batching,
                stays=len(recipe.teachers) == 1,
                mesh=mesh,
            )

    def judge(self, samples: Sequence[Sample], names: Sequence[str]) -> list[Sample]:
        """The samples, each with what its teacher says: log-probs of its tokens, or a target for all tokens."""
        judged = list(samples)
        for name, teacher in self.teachers.items():
            places = [i for i, asked in enumerate(names) if asked == name]
            theirs = [samples[i] for i in places]
            if self.divergence is None:
                theirs = attach(theirs, ref_logprobs=teacher.logprobs(theirs))
            else:
                theirs = attach(theirs, target=teacher.targets(theirs, self.divergence))
            for i, sample in zip(places, theirs, strict=True):
                judged[i] = sample
        return judged


def teacher_of(recipe: OPDRecipe, problem: Problem) -> str:
    """The name of the teacher that judges the completions of a problem.

    Raises:
        ValueError: the problem names none, or one that the recipe does not have.
    """
    if recipe.teacher_column is None:
        return next(iter(recipe.teachers))
    known = ", ".join(recipe.teachers)
    if recipe.teacher_column not in problem.columns:
        raise ValueError(
            f"teacher_column={recipe.teacher_column!r}: problem {problem.id!r} has no such column; it has "
            f"{', '.join(problem.columns) or 'none'}. Name the column that chooses among {known}."
        )
    name = problem.columns[recipe.teacher_column]
    if name not in recipe.teachers:
        raise ValueError(
            f"teacher_column={recipe.teacher_column!r}: problem {problem.id!r} asks for teacher {name!r}, and the "
            f"recipe's are {known}.{nearest(str(name), recipe.teachers)} Add it to teachers, or correct the data."
        )
    return str(name)


def check_column(recipe: OPDRecipe, streams: Iterable[ProblemStream], accelerator: Accelerator) -> None:
    """Raise in all processes if a problem of a dataset, or the first of an endless source, has no teacher."""
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    problems = (
        problem for stream in streams for problem in usable(stream.source, range(stream.source.size or 1)[share])
    )
    error = "" if recipe.teacher_column is None else _first_error(recipe, problems)
    if error := next(filter(None, gather_object([error])), ""):
        raise ValueError(error)


def _first_error(recipe: OPDRecipe, problems: Iterable[Problem]) -> str:
    try:
        for problem in problems:
            teacher_of(recipe, problem)
    except ValueError as error:
        return str(error)
    return ""


def check_tokenizers(recipe: OPDRecipe) -> None:
    """Raise unless every teacher reads the student's token ids as the student does.

    Raises:
        ValueError: a teacher's vocabulary, or its token that begins or ends a text, is another one.
    """
    model = recipe.model
    student = load_tokenizer(model.model_name_or_path, model.revision, model.trust_remote_code)
    for name, config in recipe.teachers.items():
        teacher = load_tokenizer(config.model_name_or_path, config.revision, model.trust_remote_code)
        if difference := _difference(student, teacher):
            raise ValueError(
                f"teachers.{name}={config.model_name_or_path}: its tokenizer is not the student's ({difference}), and "
                "a teacher must judge the very tokens that the student sampled. Choose one with the same tokenizer, or "
                "train the student on the teacher's texts."
            )


def _difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str:
    """The first thing in which two tokenizers differ, or an empty string."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        token = min(differing, key=lambda token: ours.get(token, theirs.get(token, 0)))
        return (
            f"{len(theirs)} entries against {len(ours)}, {len(differing)} of them different: {token!r} has id "
            f"{theirs.get(token)} there and {ours.get(token)} here"
        )
    for kind in ("bos_token_id", "eos_token_id"):
        if getattr(student, kind) != getattr(teacher, kind):
            return f"{kind} is {getattr(teacher, kind)} there and {getattr(student, kind)} here"
    return ""
