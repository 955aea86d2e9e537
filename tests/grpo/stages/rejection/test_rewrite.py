"""Rewriting the kept samples, with a local HTTP server in the place of the model that rewrites."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from grpo.recipe.errors import RefusedError, RunError
from grpo.recipe.load import RecipeError, load_recipe
from grpo.stages.rejection import rewrite
from grpo.stages.run import run
from tests.grpo.stages.rejection.test_rejection import ROOT, content, sections

INSTRUCTIONS = 'Question: {prompt}\nAnswer as {"text": …}:\n{completion}'
Reply = tuple[int, Any]


def said(text: Any, finish_reason: str = "stop") -> Reply:
    return 200, {"choices": [{"index": 0, "finish_reason": finish_reason, "message": {"content": text}}]}


class Server:
    """Answers request number n about a sample, from 0, with `reply(n, completion)`; the check with `check()`."""

    def __init__(self) -> None:
        self.reply: Callable[[int, str], Reply] = lambda number, _: said(f"<think>We add.</think>{number}")
        self.check: Callable[[], Reply] = lambda: said("yes")
        self.asked: list[dict[str, Any]] = []  # requests that rewrite a sample
        self.checks: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = body | {"path": self.path, "key": self.headers["Authorization"]}
                (message,) = body["messages"]
                completion = message["content"].partition(":\n")[2]
                with owner.lock:
                    number = len(owner.asked)
                    (owner.asked if completion else owner.checks).append(request)
                status, reply = owner.reply(number, completion) if completion else owner.check()
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def section(self, **values: Any) -> dict[str, Any]:
        return {
            "model": "m",
            "base_url": self.url,
            "instructions": INSTRUCTIONS,
            "max_retries": 0,
            "max_concurrency": 1,  # so that the requests have an order
            **values,
        }


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def rewriting(model: Path, folder: Path, section: dict[str, Any] | None, **values: Any) -> dict[str, Any]:
    """5 problems with 3 samples each, all of them right."""
    changed = {
        "rewards": [{"function": f"{Path(__file__).parent / 'scores.py'}:right"}],
        "filters": [{"name": "correct", "reward": "right"}, {"name": "paragraph_length", "max_characters": 60}],
        "rewrite": section,
    }
    return sections(model, folder, **changed | values)


@pytest.fixture(scope="module")
def sampled(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without `rewrite`."""
    return run(load_recipe(None, sections=rewriting(tiny_llama, tmp_path_factory.mktemp("sampled") / "run", None)))


@pytest.fixture
def start(sampled: Path, tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """Rewrites the samples of `sampled`, in a folder by name; the next call with this name continues there."""

    def start(section: dict[str, Any], name: str = "run", **values: Any) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(sampled, folder)
        return run(load_recipe(None, sections=rewriting(tiny_llama, folder, section, **values)))

    return start


def rows(folder: Path) -> list[dict[str, Any]]:
    dataset: Any = load_dataset(str(folder), split="train")
    return dataset.to_list()


def removals(folder: Path) -> dict[str, tuple[int, int]]:
    """What rewriting removed: {"cut": (seen, removed)}."""
    found = json.loads((folder / "filters.json").read_text())["removals"]
    second = [one for one in found if one["by"].startswith("rewritten: ")]
    return {one["by"].removeprefix("rewritten: "): (one["seen"], one["removed"]) for one in second}


def test_the_rewritten_text_replaces_the_completion(
    server: Server, start: Callable[..., Path], sampled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret\n")
    folder = start(server.section(api_key_env="MY_KEY"))
    before, after = rows(sampled), rows(folder)
    assert len(before) == len(after) == len(server.asked) == 15
    assert list(after[0]) == [*list(before[0])[:-2], "original_completion", "model", "seed"]
    assert [row["original_completion"] for row in after] == [row["completion"] for row in before]
    for number, row in enumerate(after):
        space = re.match(r"\s*", row["original_completion"].removeprefix("<think>"))
        assert space and row["completion"] == f"<think>{space[0]}We add.</think>{number}"
        assert row["num_tokens"] == len(space[0]) + len("We add.") + 1 + len(str(number))  # a token per byte and tag
        assert row["rewards/right"] == 1.0
    first = server.asked[0]
    assert first["messages"] == [
        {
            "role": "user",
            "content": f'Question: {before[0]["prompt"]}\nAnswer as {{"text": …}}:\n{before[0]["completion"]}',
        }
    ]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0.0, 8192)
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert "| rewritten by | m |" in (folder / "README.md").read_text()


def test_what_does_not_pass_again_is_dropped_and_counted(
    server: Server, start: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {
        0: said("<think>wrong</think>"),
        1: said("<think>We add", "length"),
        2: said(" \n"),
        3: said(None, "length"),  # all tokens went into a thought of its own
        4: said("x" * 61),
        5: (400, {"error": "this prompt is too long"}),
    }
    server.reply = lambda number, _: replies.get(number, said(f"<think>We add.</think>{number // 2}"))
    folder = start(server.section())
    assert removals(folder) == {
        "no answer": (15, 3),
        "cut": (12, 1),
        "correct (right > 0.5)": (11, 1),
        "paragraph_length (<= 60 characters)": (10, 1),
        "duplicates": (9, 3),  # 6 and 7, 9 and 10, 12 and 13 are of one problem (three samples each)
    }
    counts = json.loads((folder / "filters.json").read_text())
    assert counts["kept"] == len(rows(folder)) == 6
    assert counts["problems_covered"] == 3 and counts["sources"] == {"countdown": 6}
    printed = capsys.readouterr().out
    assert "1 samples were not rewritten" in printed and "400" in printed and "this prompt is too long" in printed
    assert re.search(r"rewritten: cut +│ +11 │ +1 │", printed)
    assert "| rewritten: no answer | 15 | 3 | 12 |" in (folder / "README.md").read_text()


def test_an_opened_thought_that_the_answer_leaves_out_is_put_back(server: Server, start: Callable[..., Path]) -> None:
    server.reply = lambda number, _: said(f"\n\nWe add.</think>{number}\n")
    texts = [row["completion"] for row in rows(start(server.section()))]
    assert len(texts) == 15 and all(re.fullmatch(r"<think>\s*We add.</think>\d+", text) for text in texts)


def test_hostile_answers_are_counted_or_kept_as_text(server: Server, start: Callable[..., Path]) -> None:
    texts = ["\ud800", "{prompt} {completion} {0}", "\x00", "\u202e</think>", "\r\n<think><think>", '"}\n{"request": "']
    odd: list[Any] = [[], "text", None, {"error": "busy"}, {"choices": []}, {"choices": [{"message": "hi"}]}]
    no_text: list[Any] = [[{"type": "text", "text": "hi"}], 7]
    replies = [*map(said, texts), *((200, reply) for reply in odd), *map(said, no_text)]
    server.reply = lambda number, _: replies[number] if number < len(replies) else said(f"We add {number}")
    folder = start(server.section())
    assert removals(folder)["no answer"] == (15, len(odd) + len(no_text))
    kept = [row["completion"] for row in rows(folder)]
    assert len(kept) == 7 and kept[0].endswith("?") and kept[1].endswith("{prompt} {completion} {0}")
    asked = len(server.asked)
    assert content(start(server.section())) == content(folder)
    assert len(server.asked) == asked + len(odd)  # what was no answer is asked for again


def test_a_stopped_run_asks_only_for_what_is_missing_and_ends_the_same(
    server: Server, start: Callable[..., Path], tmp_path: Path
) -> None:
    texts = dict[str, Reply]()

    def reply(number: int, completion: str) -> Reply:
        return texts.setdefault(completion, said(f"<think>We add.</think>{len(texts)}"))

    server.reply = reply
    whole = start(server.section(), "whole")
    server.asked.clear()
    server.reply = lambda number, completion: (401, {}) if number == 4 else reply(number, completion)
    with pytest.raises(RunError, match="The answers so far are stored: the same command continues"):
        start(server.section())
    with (tmp_path / "run" / rewrite.ANSWERS_FILE).open("ab") as file:
        file.write(b'{"request": "killed while')
    server.asked.clear()
    server.reply = reply
    assert content(start(server.section())) == content(whole)
    assert len(server.asked) == 15 - 4
    server.asked.clear()
    server.checks.clear()
    start(server.section(max_concurrency=3, timeout=5))
    assert not server.asked and not server.checks
    start(server.section(instructions="Shorter:\n{completion}"))
    assert len(server.asked) == 15


def test_filters_may_change_without_asking_again(server: Server, start: Callable[..., Path]) -> None:
    folder = start(server.section())
    server.asked.clear()
    start(server.section(), filters=[{"name": "paragraph_length", "max_characters": 23}])
    assert not server.asked and 0 < len(rows(folder)) < 15


def test_a_dataset_that_changed_after_sampling_is_refused(server: Server, tiny_llama: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "sums.jsonl", tmp_path / "run"
    data = {"dataset_name": str(file), "max_prompt_length": 64, "template": "{prompt}<think>"}

    def sample(section: dict[str, Any] | None, number: int) -> None:
        file.write_text("".join(json.dumps({"prompt": f"{i}+{number}"}) + "\n" for i in range(5)))
        run(load_recipe(None, sections=rewriting(tiny_llama, folder, section, data=data)))

    sample(None, 1)
    with pytest.raises(RefusedError, match=r"sums.jsonl/train/\d is not what was sampled: the dataset has changed"):
        sample(server.section(), 2)
    sample(server.section(), 1)
    assert len(rows(folder)) == 15


def test_nothing_left_after_rewriting_says_why(
    server: Server, start: Callable[..., Path], sampled: Path, tmp_path: Path
) -> None:
    server.reply = lambda *_: said("wrong")
    with pytest.raises(RunError, match=r"kept none of 15 samples .*: rewritten: correct \(right > 0.5\) took 15 of 15"):
        start(server.section())
    assert rows(tmp_path / "run") == rows(sampled)  # the dataset that was there stays


@pytest.mark.parametrize(
    ("changed", "reply", "message"),
    [
        ({"base_url": None}, None, r"rewrite.api_key_env=NO_KEY: this environment variable is not set, and OpenAI's"),
        ({"base_url": "http://127.0.0.1:9/v1"}, None, r"127.0.0.1:9/v1/chat/completions did not answer: ConnectError"),
        ({"base_url": "localhost:8000/v1"}, None, r"did not answer: UnsupportedProtocol"),
        ({}, (401, {"error": "no key"}), r"refused the request: 401 .*variable NO_KEY, which is not set"),
        ({}, (200, {"object": "list"}), r"/chat/completions did not return a chat completion. Check that the server"),
    ],
    ids=["no key", "no server", "no protocol", "key needed", "another API"],
)
def test_an_endpoint_that_cannot_be_asked_is_refused_before_sampling(
    changed: dict[str, Any],
    reply: Reply | None,
    message: str,
    server: Server,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    if reply is not None:
        server.check = lambda: reply
    section = server.section(api_key_env="NO_KEY", **changed)
    with pytest.raises(RefusedError, match=message):
        run(load_recipe(None, sections=rewriting(tiny_llama, tmp_path / "run", section)))
    assert not (tmp_path / "run/candidates").exists() and not server.asked


def test_instructions_without_a_place_for_the_sample_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    section = {"model": "m", "instructions": "Rewrite it: {text}"}
    with pytest.raises(RecipeError, match=r"has no place for the sample. Write \{completion\}"):
        load_recipe(None, sections=rewriting(tiny_llama, tmp_path, section))


def test_of_two_processes_only_the_main_one_asks(
    server: Server, start: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    texts = dict[str, Reply]()
    server.reply = lambda _, completion: texts.setdefault(completion, said(f"<think>We add.</think>{len(texts)}"))
    alone = start(server.section(), "alone")
    assert (len(server.asked), len(server.checks)) == (15, 1)
    server.asked.clear()
    server.checks.clear()
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(rewriting(tiny_llama, tmp_path / "run", server.section())))
    command = ["train", "--cpu", "--num_processes", "2", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "grpo", *command], check=True, cwd=tmp_path, env=environment)
    assert content(tmp_path / "run") == content(alone)
    assert (len(server.asked), len(server.checks)) == (15, 2)  # checked before sampling and before asking
