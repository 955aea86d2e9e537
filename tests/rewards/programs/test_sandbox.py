"""What the sandbox prevents at each level, as root and as an ordinary user, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from grpo.recipe.load import load_recipe
from grpo.recipe.record import write_resolved
from rewards import code
from rewards.programs.code import run_tests
from rewards.programs.sandbox import isolation, pool, remote
from rewards.programs.sandbox.isolation import LEVELS
from rewards.programs.sandbox.limits import Limits, SandboxError, Stopped
from rewards.programs.sandbox.probe import NAMES, self_test
from rewards.programs.sandbox.running import Running
from rewards.runner.score import Rewards, RewardSpec
from rollout.types import Completion, Group, Problem
from tests.rewards.programs.hostile import FAIL, PASS

ECHO = {"type": "stdin", "cases": [{"input": "3\n", "output": "3\n"}]}


def block(source):
    return f"```python\n{source}\n```"


@pytest.mark.parametrize("user", ["-", "61000"], ids=["same-user", "ordinary-user"])
@pytest.mark.parametrize("level", LEVELS[:-1])
def test_every_level_holds(level, user):
    if (problem := isolation.missing(level)) and "CI" not in os.environ:
        pytest.skip(f"this machine lacks {problem}")
    if user != "-" and os.getuid() != 0:
        pytest.skip("only root can switch users; the same-user case covers the ordinary user")
    command = [sys.executable, str(Path(__file__).parent / "hostile.py"), level, user]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["user"] == (os.getuid() if user == "-" else int(user))
    assert report["probe"]["level"] == level
    assert report["probe"]["broken"] == []
    assert report["probe"]["held"] == NAMES
    assert {name: outcome.partition(":")[0] for name, outcome in report["passed"].items()} == dict.fromkeys(
        PASS, "passed"
    )
    assert not [name for name, outcome in report["failed"].items() if outcome.startswith("passed")]
    assert report["failed"].keys() == FAIL.keys()
    assert report["seconds"] < 60
    assert report["afterwards"]


def test_the_self_test_attacks_succeed_without_a_sandbox():
    """A probe refused everywhere would prove nothing."""
    broken = self_test("none", allow_unsandboxed=True)["broken"]
    assert {"read a file of the host", "connect by TCP", "send by UDP", "signal the parent"} <= set(broken)
    assert {"make a user namespace", "share memory beyond its end", "write 300 files of 1 MB"} <= set(broken)


def test_without_isolation_submissions_are_refused(monkeypatch):
    monkeypatch.setattr(isolation, "missing", lambda level: None if level == "none" else "what it needs")
    monkeypatch.setattr(pool, "_found", None)
    with pytest.raises(ValueError, match=r"bubblewrap: what it needs.*allow_unsandboxed: true"):
        code(["q"], [block("print(3)")], [ECHO])
    assert code(["q"], [block("print(3)")], [ECHO], allow_unsandboxed=True) == [1.0]
    with pytest.raises(ValueError, match="allow_unsandboxed: true"):
        code(["q"], [block("print(3)")], [ECHO], isolation="none")
    with pytest.raises(SandboxError, match="level 'landlock' needs what it needs"):
        code(["q"], [block("print(3)")], [ECHO], isolation="landlock")


def footprint():
    """Number of this process's descriptors, its process tree, and sandbox folders."""
    tree = [os.getpid()]
    for pid in tree:
        for task in Path(f"/proc/{pid}/task").iterdir():
            tree += map(int, (task / "children").read_text().split())
    return len(list(Path("/proc/self/fd").iterdir())), len(tree), len(list(Path("/tmp").glob("sandbox-*")))


def test_many_submissions_leave_nothing_behind():
    # On every working level, clean programs mixed with one that writes files, whose box is discarded.
    programs = ["print(input())", "print(input(", "import os\nos.fork()\nprint(input())", "1/0"]
    levels = [level for level in LEVELS[:-1] if isolation.missing(level) is None]
    pool.close_all()
    before = footprint()
    for level in levels:
        for source in ["open('x', 'w')", "import time\ntime.sleep(9)"]:
            run_tests([source], [ECHO], code_in="text", isolation=level, time_limit=0.1)
        run_tests(
            [f"{text}\n#{i}" for text in programs for i in range(5)], [ECHO] * 20, code_in="text", isolation=level
        )
        for _ in range(5):
            run_tests(programs[:1], [ECHO], code_in="text", isolation=level)
    pool.close_all()
    assert footprint() == before


def test_a_clean_box_is_reused_and_a_dirty_one_is_not():
    boxes = pool.Pool(LEVELS[1] if isolation.missing(LEVELS[0]) else LEVELS[0], 1)

    def run(source):
        with (
            boxes.box() as box,
            Running(box, {"mode": "script", "preamble": "", "source": source}, Limits()) as running,
        ):
            running.feed(b"", last=True)
            return running.wait().stdout.decode()

    assert [run("print(1)"), run("1/0"), run("print(2)")] == ["1\n", "", "2\n"]
    assert boxes.started == 1
    run("open('left', 'w')")
    assert run("import os\nprint(os.listdir())") == "['main.py']\n"
    assert boxes.started == 2
    run("import os\nos.chmod('.', 0o500)")
    assert run("open('left', 'w')\nprint(1)") == "1\n"
    with pytest.raises(Stopped), boxes.box() as box:
        Running(box, {"mode": "script", "preamble": "", "source": "while 1: pass"}, Limits(time_limit=0.1)).wait()
    assert run("print(3)") == "3\n"
    assert boxes.started == 5
    boxes.close()


def test_submissions_see_neither_each_other_nor_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "swordfish")
    source = "import os, sys\nprint(sorted(os.environ), os.getcwd(), sys.argv)"
    tests = {"type": "stdin", "cases": [{"input": "", "output": "-"}]}
    detail = run_tests([source], [tests], code_in="text")[0].first_failure.detail
    assert "SECRET" not in detail and "PATH" in detail
    first, second = (
        run_tests([text], [ECHO], code_in="text")[0] for text in ["import math\nmath.x = 3", "print(math.x)"]
    )
    assert (first.reason, second.reason) == ("no output", "crashed")


def test_a_reward_worker_killed_mid_step_costs_only_time():
    """Its sandboxes end with it, and another worker scores the group again."""
    completions = [block("import time\nn = input()\ntime.sleep(4)\nprint(n)"), block("print(4)")]
    values = [
        Completion(token_ids=[1], logprobs=[0.0], text=text, finish_reason="stop", policy_version=0)
        for text in completions
    ]
    problem = Problem(id="p/0", prompt="q", columns={"tests": ECHO})
    rewards = Rewards([RewardSpec(function="code")], num_workers=1)
    scored = []
    thread = threading.Thread(
        target=lambda: scored.extend(rewards.score([Group(problem=problem, prompt_ids=[1], completions=values)]))
    )
    thread.start()
    deadline = time.monotonic() + 30
    while not (sleeping := submissions()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 3
    while sleeping & submissions():
        assert time.monotonic() < deadline, "a submission outlived the worker"
        time.sleep(0.05)
    thread.join(30)
    assert scored[0].rewards == [1.0, 0.0]
    rewards.close()
    deadline = time.monotonic() + 5
    while submissions():
        assert time.monotonic() < deadline, "a sandbox outlived the worker"
        time.sleep(0.05)


def workers():
    return {
        pid for pid, command, *_ in commands() if b"rewards.runner.remote" in command and parent(pid) == os.getpid()
    }


def submissions():
    """Sandbox processes of this test's workers with their own process group: submissions."""
    return {
        pid
        for pid, command, session, group in commands()
        if b"rewards.programs.sandbox.inside" in command and group == pid != session
    }


def commands():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"rewards" in command:
                pid = int(folder.name)
                found.append((pid, command, os.getsid(pid), os.getpgid(pid)))
        except OSError:
            continue
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_forked_child_gets_its_own_sandboxes():
    assert code(["q"], [block("print(input())")], [ECHO]) == [1.0]
    pid = os.fork()
    if pid == 0:
        right = code(["q"], [block("print(input())")], [ECHO]) == [1.0]
        pool.close_all()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert code(["q"], [block("print(input())")], [ECHO]) == [1.0]


def test_the_run_records_its_sandbox_self_test(tmp_path):
    recipe = {
        "model": {"model_name_or_path": "x"},
        "data": {"dataset_name": "y"},
        "rewards": [{"function": "code"}],
        "trainer": {"output_dir": str(tmp_path)},
    }
    (tmp_path / "recipe.yaml").write_text("# -*- coding: grpo-recipe -*-\n" + yaml.safe_dump(recipe))
    write_resolved(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    sandbox = json.loads((tmp_path / "environment.json").read_text())["sandbox"]
    assert sandbox["level"] in LEVELS[:-1] and sandbox["broken"] == [] and sandbox["held"] == NAMES


class Service(BaseHTTPRequestHandler):
    """Both APIs, backed by the local sandbox. The first request gets a 503."""

    busy = 1

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if type(self).busy:
            type(self).busy -= 1
            self.send_error(503, "busy")
            return
        source = request["code"] if "code" in request else request["files"][0]["content"]
        limit = request.get("run_timeout", 0) / (1 if "code" in request else 1000)
        memory = request["memory_limit_MB"] if "code" in request else request["run_memory_limit"] >> 20
        status, stdout, stderr, timeout = None, "", "", False
        with pool.pool().box() as box:
            job = {"mode": "script", "preamble": "", "source": source}
            try:
                with Running(box, job, Limits(time_limit=limit, memory_mb=memory)) as running:
                    running.feed(request["stdin"].encode(), last=True)
                    ended = running.wait()
                status, stdout, stderr = ended.status, ended.stdout.decode(), ended.stderr
            except Stopped as stopped:
                timeout = stopped.reason == "timeout"
        if self.path == "/run_code":
            state = "TimeLimitExceeded" if timeout else "Finished"
            result = {"status": state, "return_code": status, "stdout": stdout, "stderr": stderr, "execution_time": 0.1}
            answer = {"status": "Failed" if status else "Success", "compile_result": None, "run_result": result}
        else:
            assert self.path == "/api/v2/execute"
            signal_name = "SIGKILL" if timeout else None
            run = {"code": status, "signal": signal_name, "stdout": stdout, "stderr": stderr, "output": stdout + stderr}
            answer = {"language": "python", "version": "3", "run": run}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    Service.busy = 1
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["piston", "sandboxfusion"])
def test_a_remote_sandbox_gives_the_same_results(service, kind):
    call = {
        "type": "call",
        "entry_point": "f",
        "cases": [{"input": [1], "output": [1, 2]}, {"input": [5], "output": []}],
    }
    preamble = {"preamble": "def g(x): return x"}
    cases = [
        ("print(input())", ECHO),
        ("print(4)", ECHO),
        ("pass", ECHO),
        ("1/0", ECHO),
        ("while True: pass", ECHO),
        ("a = bytearray(1 << 40)", ECHO),
        ("def f(x): return (1, 2) if x == 1 else []", call),
        ("class Solution:\n    def f(self, x): return [1, 2]", call),
        ("def f(x):\n    print('noise')\n    return [1, 2] if x == 1 else 1/0", call),
        ("import os\ndef f(x): os._exit(0)", call),
        ("class A(list):\n    __eq__ = lambda s, o: True\ndef f(x): return A([0])", call),
        ("from __future__ import annotations\ndef f(x: int): return g([1, 2] if x == 1 else [])", call | preamble),
        ("\ufefffrom __future__ import annotations\nif __name__ == '__main__': print(g(3))", ECHO | preamble),
        ("def f(x): return [1, 2] if x == 1 else []\nif __name__ == '__main__': 1/0", call),
    ]
    sources, tests = zip(*cases, strict=True)
    options = {"code_in": "text", "time_limit": 0.5, "memory_mb": 256}
    local = [[r.reason for r in result.results] for result in run_tests(sources, tests, **options)]
    remote = run_tests(sources, tests, backend=f"{kind}+{service}", **options)
    assert [[r.reason for r in result.results] for result in remote] == local
    assert [v.passed for v in remote] == [True] + [False] * 5 + [True] + [False] * 4 + [True] * 3


def test_an_unreachable_remote_sandbox_is_an_error(monkeypatch):
    monkeypatch.setattr(remote, "_RETRIES", 2)
    with pytest.raises(SandboxError, match="did not answer"):
        code(["q"], [block("print(3)")], [ECHO], backend="piston+http://127.0.0.1:9")
    with pytest.raises(ValueError, match="neither 'local' nor a remote sandbox"):
        code(["q"], [block("print(3)")], [ECHO], backend="http://127.0.0.1:9")
