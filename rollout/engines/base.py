"""The interfaces of rollout engines, and what all engines share: tokenizer, seeds, end tokens, texts, token budgets."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rollout.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class EngineLostError(Exception):
    """The engine is gone for good, by no fault of the trainer. The message says why, in one sentence."""


class Engine(Protocol):
    """Generates groups of completions."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield one Group per prompt as soon as it is complete, in no particular order.

        A completion ends at an end token, at a stop text, or after min(max_completion_length, max_model_len - prompt
        tokens) tokens, which gives finish_reason "length". The iterator holds the engine until it is exhausted or
        closed. At temperature 0 decoding is greedy and log-probs are those at temperature 1.

        Raises:
            ValueError: a prompt leaves no room for a single token. Raised by the call itself, before generation starts.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory and processes."""
        ...


class Streaming(Protocol):
    """An engine that generates beside the trainer, and takes new weights meanwhile."""

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Group]:
        """Start generating one prompt's Group. `Completion.policy_version` says which weights sampled each token.

        The future raises EngineLostError if the engine is lost. It may be cancelled.

        Raises:
            ValueError: the prompt leaves no room for a single token.
        """
        ...


class Publisher(Protocol):
    """Makes an engine sample from new weights. An engine in the trainer's process is its own publisher."""

    def publish(self, weights: Iterable[tuple[str, "Tensor"]], policy_version: int) -> None:
        """Make the engine sample with these weights from now on.

        Args:
            weights: every weight of the model, under its name in the checkpoint on disk (Hugging Face layout).
            policy_version: recorded in each completion sampled with these weights.
        """
        ...


class Sleeper(Protocol):
    """An engine in the trainer's process that can give its GPU memory back during an update."""

    def sleep(self) -> None:
        """Free the memory until the next `publish`; nothing is generated before it."""
        ...


def request_seed(sampling: Sampling, prompt: Prompt) -> int:
    """A 63-bit seed for one prompt's group, independent of machine, number of processes and prompt order."""
    key = f"{sampling.seed}/{prompt.problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def load_tokenizer(model_name_or_path: str, revision: str | None, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder or Hub name.

    Raises:
        ValueError: there is no such model or it has no tokenizer, or its tokenizer needs remote code.
    """
    remedy = "Name a Hugging Face folder, or a Hub model that this machine has or can reach."
    is_folder = Path(model_name_or_path).is_dir()
    if not is_folder and not may_be_on_hub(model_name_or_path):  # which offline is asked several times
        raise ValueError(f"model {model_name_or_path!r} has no tokenizer: no such folder or Hub model. {remedy}")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model.trust_remote_code=false: the tokenizer of {model_name_or_path!r} runs code from that "
                "repository. Read the code, then set model.trust_remote_code=true, or use another tokenizer."
            ) from error
        reason = str(error).partition("\n")[0] if is_folder else "no such folder or Hub model"
        if newest := newest_inside(model_name_or_path):
            reason, remedy = "it is the folder of a run", f"Name a checkpoint in it, such as {newest}."
        raise ValueError(f"model {model_name_or_path!r} has no tokenizer: {reason.rstrip(' :.')}. {remedy}") from error


def may_be_on_hub(name: str) -> bool:
    """Whether a model's name has the form of a Hub name, `name` or `organization/name`: other paths are local."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def newest_inside(folder: str | Path) -> Path | None:
    """The newest `checkpoint-N` in a run's folder that has no model of its own; None: it is no such folder."""
    if (Path(folder) / "config.json").exists():
        return None
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def end_token_ids(model_path: str, tokenizer: "PreTrainedTokenizerBase", revision: str | None) -> list[int]:
    """Ids that end a completion: the tokenizer's EOS and every eos_token_id in generation_config.json and config.json.

    The files are read as they are: transformers' config classes would add their own default EOS.
    """
    config = _read_json(model_path, "config.json", revision)
    sections = [config, config.get("text_config") or {}, _read_json(model_path, "generation_config.json", revision)]
    found: list[Any] = [tokenizer.eos_token_id]
    for section in sections:
        configured = section.get("eos_token_id")
        found += configured if isinstance(configured, list) else [configured]
    ids = {i for i in found if i is not None}
    if not ids:
        raise ValueError(
            f"{model_path} has no EOS token, so completions could not end. "
            "Set eos_token in its tokenizer_config.json or eos_token_id in its generation_config.json."
        )
    return sorted(ids)


def _read_json(model_path: str, name: str, revision: str | None) -> dict[str, Any]:
    """A file of the model; {} if it has none, as a folder with only a tokenizer has no config.json."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(model_path, name, revision=revision)
    except OSError:
        return {}
    return json.loads(Path(str(path)).read_text(encoding="utf-8"))


def check_context(config: "PretrainedConfig", max_model_len: int) -> None:
    """Raise ValueError if the model's positions end before `max_model_len`: beyond them it produces noise."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:  # no positions, such as a state-space model's
        return
    rope = getattr(text, "rope_parameters", None) or {}
    # Other kinds of scaling state the scaled context in max_position_embeddings.
    if rope.get("rope_type") in ("linear", "dynamic"):
        limit = int(limit * rope["factor"])
    elif rope.get("rope_type") == "yarn":
        limit = max(limit, int(rope.get("original_max_position_embeddings", limit) * rope["factor"]))
    if max_model_len > limit:
        raise ValueError(
            f"max_model_len={max_model_len}: the model's context is {limit} tokens (max_position_embeddings in its "
            f"config.json). Lower max_model_len, or the longest prompt plus completion, to at most {limit}."
        )


def completion_texts(
    tokenizer: "PreTrainedTokenizerBase", end_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """Text of each completion without end tokens, BOS and PAD. Other special tokens stay: <think> may be one."""
    hidden = [tokenizer.bos_token_id, tokenizer.pad_token_id, *end_ids]
    return tokenizer.batch_decode([[i for i in ids if i not in hidden] for ids in completions])


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def completion_budgets(prompts: Sequence[Prompt], sampling: Sampling, max_model_len: int) -> list[int]:
    """Token budget of each completion: min(max_completion_length, max_model_len - len(prompt)), at least 1."""
    for prompt in prompts:
        if len(prompt.token_ids) >= max_model_len:
            raise ValueError(
                f"prompt {prompt.problem.id!r} has {len(prompt.token_ids)} tokens, max_model_len is {max_model_len}: "
                "a prompt must leave room for at least one token. "
                "Raise rollout.max_model_len or lower data.max_prompt_length."
            )
    return [min(sampling.max_completion_length, max_model_len - len(prompt.token_ids)) for prompt in prompts]
