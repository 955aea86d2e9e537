"""A model behind an endpoint rewrites the kept samples. Answers go to disk as they come, so none is asked for twice.

Left out: judging an answer, which is `grpo.stages.rejection.verify`; a thought that the endpoint returns inside an
answer (its server has to separate them).
"""

import json
import re
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from hashlib import blake2b
from pathlib import Path

from grpo.recipe.errors import RefusedError, RunError
from grpo.recipe.stages.rejection import RewriteConfig
from grpo.stages.rejection.candidates import Candidate
from rewards.text import prompt_text
from rollout.support.chat import ChatModel, ChatReply
from rollout.support.http import RequestFailedError

ANSWERS_FILE = "rewritten.jsonl"
DECIDES_ANSWER = ("model", "instructions", "max_tokens", "temperature")  # other keys say only how it is asked
# The sample is too long or not allowed, or its reply is none; another one may be fine.
_ONLY_THIS_SAMPLE = frozenset({200, 400, 413, 422})
_PLACE = re.compile(r"\{(prompt|completion)\}")


class Answers:
    """The answers of one run, in `<output>/rewritten.jsonl`: appended by any thread, read by request.

    Memory holds a line's place for each answer, not its text.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ANSWERS_FILE
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        with self._path.open("a+b") as file:
            file.seek(0)
            end = 0
            for line in file:
                if not line.endswith(b"\n"):  # the process was killed while it wrote
                    break
                self._places[json.loads(line)["request"]] = end
                end += len(line)
            file.truncate(end)

    def __contains__(self, request: str) -> bool:
        return request in self._places

    def add(self, request: str, sample: Candidate, answer: ChatReply) -> None:
        """Append an answer."""
        row = {
            "request": request,
            "problem_id": sample["problem_id"],
            "sample": sample["sample"],
            "finish_reason": answer.finish_reason,
            "text": answer.text,
        }
        with self._lock, self._path.open("ab") as file:
            self._places[request] = file.tell()
            file.write(json.dumps(row).encode() + b"\n")

    def get(self, request: str) -> ChatReply | None:
        """The answer to a request; None if the endpoint gave none."""
        if request not in self._places:
            return None
        with self._path.open("rb") as file:
            file.seek(self._places[request])
            row = json.loads(file.readline())
        return ChatReply(row["text"], row["finish_reason"])


class _Rewriter:
    """The model that rewrites."""

    def __init__(self, section: RewriteConfig) -> None:
        self._section = section
        self._model = ChatModel(
            section.model,
            section.base_url,
            api_key_env=section.api_key_env,
            timeout=section.timeout,
            max_retries=section.max_retries,
            max_connections=section.max_concurrency,
        )

    def __enter__(self) -> "_Rewriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def check(self) -> None:
        """Ask for a word.

        Raises:
            RefusedError: no key, no answer, or an answer that is no chat completion.
        """
        if self._section.base_url is None and not self._model.has_key:
            raise RefusedError(
                f"rewrite.api_key_env={self._section.api_key_env}: this environment variable is not set, and OpenAI's "
                "endpoint needs a key. Export it, name another one, or set rewrite.base_url to your own server."
            )
        try:
            self._ask("Say yes.", max_tokens=16, retry_transport_errors=False)
        except RequestFailedError as error:
            raise RefusedError(f"rewrite: {error}. {self._remedy}") from error

    def rewrite(self, sample: Candidate) -> ChatReply | str:
        """The model's answer, or why there is none for this sample.

        Raises:
            RunError: the endpoint does not answer, or would refuse any sample.
        """
        try:
            return self._ask(self._text(sample), max_tokens=self._section.max_tokens)
        except RequestFailedError as error:
            if error.status in _ONLY_THIS_SAMPLE:
                return str(error)
            raise RunError(
                f"rewrite: {error}. {self._remedy} The answers so far are stored: the same command continues."
            ) from error

    def _ask(self, text: str, *, max_tokens: int, retry_transport_errors: bool = True) -> ChatReply:
        return self._model.complete(
            [{"role": "user", "content": text}],
            max_tokens=max_tokens,
            temperature=self._section.temperature,
            retry_transport_errors=retry_transport_errors,
        )

    def _text(self, sample: Candidate) -> str:
        """The instructions for a sample; braces of other texts, and of what is filled in, stay."""
        filled = {"prompt": prompt_text(sample["prompt"]), "completion": sample["completion"]}
        return _PLACE.sub(lambda place: filled[place[1]], self._section.instructions)

    @property
    def _remedy(self) -> str:
        return (
            "Check that the server is up, rewrite.base_url, rewrite.model, and the key in the environment variable "
            f"{self._section.api_key_env}, which is {'set' if self._model.has_key else 'not set'}."
        )


def request_key(section: RewriteConfig, sample: Candidate) -> str:
    """A hash that changes with the sample and whatever decides its answer."""
    asked = (
        *(sample["problem_id"], sample["sample"], sample["prompt"], sample["completion"]),
        *(getattr(section, key) for key in DECIDES_ANSWER),
    )
    return blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()


def check_endpoint(section: RewriteConfig) -> None:
    """RefusedError unless the model behind the endpoint answers."""
    with _Rewriter(section) as rewriter:
        rewriter.check()


def ask(samples: Iterable[Candidate], section: RewriteConfig, answers: Answers) -> list[str]:
    """Store the answers that are missing, as they come; returns why samples got none.

    Samples are read only as fast as they are asked for.

    Raises:
        RefusedError: the endpoint does not answer the first request.
        RunError: it stopped answering. What it answered before is stored.
    """

    def problem(rewriter: _Rewriter, request: str, sample: Candidate) -> str | None:
        answer = rewriter.rewrite(sample)
        if isinstance(answer, str):
            return answer
        answers.add(request, sample, answer)
        return None

    requests = ((request_key(section, sample), sample) for sample in samples)
    missing = ((request, sample) for request, sample in requests if request not in answers)
    found, running = list[str | None](), set[Future[str | None]]()
    with _Rewriter(section) as rewriter, ThreadPoolExecutor(section.max_concurrency) as threads:
        for number, (request, sample) in enumerate(missing):
            if number == 0:
                rewriter.check()
            if len(running) == section.max_concurrency:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                found += [future.result() for future in done]
            running.add(threads.submit(problem, rewriter, request, sample))
        found += [future.result() for future in running]
    return [why for why in found if why is not None]
