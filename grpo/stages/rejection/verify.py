"""The second verification: a rewritten sample is scored again and has to pass every filter again."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa

from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.stages import parts
from grpo.stages.problems import stream_of
from grpo.stages.rejection.candidates import REWARD, Candidate, Candidates, question
from grpo.stages.rejection.rewrite import Answers, ask, request_key
from grpo.stages.rejection.select import Counts, Indices, Removal, digest, removed_by
from rewards.runner.score import Rewards
from rollout.engines.base import load_tokenizer
from rollout.support.chat import ChatReply
from rollout.types import Completion, Prompt

ORIGINAL = "original_completion"
_NO_ANSWER, _CUT, _DUPLICATES = "no answer", "cut", "duplicates"  # what removes a rewritten sample, beside the filters


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A rewritten sample that has yet to be scored."""

    row: Candidate
    completion: Completion


class SecondVerification:
    """Rewrites the kept samples and keeps those that still pass."""

    def __init__(self, recipe: RejectionRecipe) -> None:
        assert recipe.rewrite is not None
        self._recipe, self._section, model = recipe, recipe.rewrite, recipe.model
        self._tokenizer = load_tokenizer(model.model_name_or_path, model.revision, model.trust_remote_code)
        self._seen, self._removed = Counter[str](), Counter[str]()
        self._sources, self._problems, self._digests = Counter[str](), set[str](), set[int]()

    def tables(self, candidates: Candidates, kept: Indices) -> Generator[pa.Table, None, None]:
        """The rows at these positions, rewritten, batch by batch, without those that do not pass.

        Raises:
            RunError: the endpoint does not answer.
        """
        recipe = self._recipe
        answers = Answers(recipe.output_dir)
        samples = (row for table in candidates.at(kept) for row in table.to_pylist())
        refusals = ask(_announced(samples, len(kept), self._section.model), self._section, answers)
        if refusals:
            print(f"{len(refusals)} samples were not rewritten. The first: {refusals[0]}", flush=True)
        problems = stream_of(recipe.data, self._tokenizer, seed=recipe.seed)
        rewards = parts.rewards(recipe.rewards, num_workers=recipe.num_reward_workers, timeout=recipe.reward_timeout)
        try:
            for size, table in zip(recipe.batches, candidates.at(kept), strict=True):
                prompts = {prompt.problem.id: prompt for prompt in problems.take(size)}
                samples = table.to_pylist()
                self._check_same_data(samples, prompts)
                scored = self._scored(samples, answers, prompts, rewards)
                rows = [row for row in scored if self._passes(row)]
                yield pa.Table.from_pylist(rows, schema=table.schema.append(pa.field(ORIGINAL, pa.string())))
        finally:
            rewards.close()

    def counts(self, before: Counts) -> Counts:
        """The counts with what rewriting removed."""
        filters = [chosen.label for chosen in self._recipe.filters]
        duplicates = [_DUPLICATES] * self._recipe.select.deduplicate
        return replace(
            before,
            removals=before.removals
            + [
                Removal(f"rewritten: {by}", self._seen[by], self._removed[by])
                for by in (_NO_ANSWER, _CUT, *filters, *duplicates)
            ],
            kept=self._sources.total(),
            problems_covered=len(self._problems),
            sources={name: self._sources[name] for name in before.sources},
        )

    def _check_same_data(self, samples: Sequence[Candidate], prompts: Mapping[str, Prompt]) -> None:
        for sample in samples:
            prompt = prompts.get(sample["problem_id"])
            if prompt is None or question(prompt.problem) != sample["prompt"]:
                raise RefusedError(
                    f"{sample['problem_id']} is not what was sampled: the dataset has changed since. Restore it, or "
                    "start over in another folder: resume=false."
                )

    def _scored(
        self, rows: Sequence[Candidate], answers: Answers, prompts: Mapping[str, Prompt], rewards: Rewards
    ) -> Iterator[Candidate]:
        """The rows with a whole answer, as candidates with the rewards of what was rewritten."""
        whole = [
            self._rewritten(row, answer.text, prompts[row["problem_id"]])
            for row in rows
            if (answer := self._whole_answer(row, answers)) is not None
        ]
        by_problem = [list(ours) for _, ours in groupby(whole, key=lambda one: one.row["problem_id"])]
        groups = [prompts[ours[0].row["problem_id"]].group([one.completion for one in ours]) for ours in by_problem]
        for ours, scored in zip(by_problem, rewards.score(groups), strict=True):
            for place, one in enumerate(ours):
                yield one.row | {REWARD + name: values[place] for name, values in scored.counted.items()}

    def _whole_answer(self, row: Candidate, answers: Answers) -> ChatReply | None:
        answer = answers.get(request_key(self._section, row))
        if self._removes(_NO_ANSWER, answer is None or not answer.text.strip()):
            return None
        assert answer is not None
        return None if self._removes(_CUT, answer.finish_reason != "stop") else answer

    def _rewritten(self, row: Candidate, answer: str, prompt: Prompt) -> _Rewritten:
        """The answer in the place of what the model wrote: after what the prompt began, and the white space there."""
        original = row["completion"].removeprefix(prompt.prefix)
        space = original[: len(original) - len(original.lstrip())]
        text = space + answer.strip().removeprefix(prompt.prefix.strip()).lstrip()
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        changed = {
            "completion": prompt.prefix + text,
            ORIGINAL: row["completion"],
            "num_tokens": len(ids),
            "finished": True,
        }
        return _Rewritten(
            row | changed,
            Completion(token_ids=ids, logprobs=[], text=text, finish_reason="stop", policy_version=0),
        )

    def _passes(self, row: Candidate) -> bool:
        if removed_by(self._recipe.filters, row, self._seen, self._removed) is not None:
            return False
        if self._recipe.select.deduplicate:
            known, mine = self._digests, digest(row)
            if self._removes(_DUPLICATES, mine in known):
                return False
            known.add(mine)
        self._sources[row["data_source"]] += 1
        self._problems.add(row["problem_id"])
        return True

    def _removes(self, by: str, is_removed: bool) -> bool:
        self._seen[by] += 1
        self._removed[by] += is_removed
        return is_removed


def _announced(samples: Iterable[Candidate], total: int, model: str) -> Iterator[Candidate]:
    """The samples; about twenty times, says how many have been read."""
    for number, sample in enumerate(samples):
        if number % -(-total // 20) == 0:
            print(f"rewriting with {model}: {number} of {total} samples", flush=True)
        yield sample
