"""What a process in the sandbox does: run a script, serve calls, check, or run a program. Standard library only.

    run(job, stdin, stdout, stderr)     job["mode"]:
      "script"   run job["source"] on the three pipes, as `python main.py` would (script.py)
      "serve"    import job["source"], then answer requests (a line on stdin) with replies (a line on stdout)
      "check"    run job["tests"], trusted code, whose calls to the submission become requests to another process
      "compile", "program"   execute job["argv"] on the three pipes

In "serve" the submission shares this interpreter and may write anything to the pipe, but it knows no expected values. A
reply counts only if it carries its request's nonce, so none can be written in advance. It is `NONCE value TEXT` or
`NONCE error [NAME, MESSAGE]`, and parsed only where its content is needed: parsing a hostile one may take long.
"""

import builtins
import importlib
import io
import json
import operator
import os
import sys
import traceback
import types
from typing import Any, NoReturn

from rewards.programs.sandbox.inside import plain, script

OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "iter": iter,
    "next": next,
}


def run(job: dict[str, Any], stdin: int, stdout: int, stderr: int) -> NoReturn:
    requests = replies = -1
    if job["mode"] in ("serve", "check"):
        requests, replies = os.dup(stdin), os.dup(stdout)
    else:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdin, stdout, stderr):
        os.close(fd)
    script.open_streams()
    code = 1
    try:
        if job["mode"] == "script":
            script.run(job["preamble"], job["source"])
        elif job["mode"] == "serve":
            namespace = _define(job)
            classes = {name: namespace[name] for name in job["classes"]}
            _serve(namespace, classes, os.fdopen(requests, "rb"), os.fdopen(replies, "w", encoding="ascii"))
        elif job["mode"] == "check":
            _check(job, os.fdopen(requests, "rb"), os.fdopen(replies, "w", encoding="ascii"))
        else:
            os.execve(job["argv"][0], job["argv"], dict(os.environ))
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


def _define(job: dict[str, Any]) -> dict[str, Any]:
    """Import the submission as a module, so `if __name__ == "__main__"` does not run; its namespace."""
    module = sys.modules["submission"] = types.ModuleType("submission")
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [script.FILE]
    for part, name in [(job["preamble"], "preamble.py"), (script.encode(job["source"]), script.FILE)]:
        if part:
            exec(compile(part, name, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _serve(
    namespace: dict[str, Any], classes: plain.Classes, requests: io.BufferedReader, replies: io.TextIOBase
) -> None:
    objects: dict[int, Any] = {}

    def handle(value: Any) -> int:
        objects[len(objects)] = value
        return len(objects) - 1

    replies.write("ready\n")
    replies.flush()
    for line in requests:
        request = json.loads(line)
        try:
            arguments = plain.loads(request["arguments"], objects.__getitem__, classes)
            value = _operate(request["operation"], arguments, namespace)
            reply = f"value {plain.dumps(value, handle, classes)}"
        except BaseException as error:
            reply = f"error {json.dumps([type(error).__name__, _message(error)])}"
        replies.write(f"{request['nonce']} {reply}\n")
        replies.flush()


def _operate(operation: str, arguments: Any, namespace: dict[str, Any]) -> Any:
    if operation == "call":
        function, positional, keywords = arguments
        return (_find(function, namespace) if isinstance(function, str) else function)(*positional, **keywords)
    return OPERATIONS[operation](*arguments)


def _find(name: str, namespace: dict[str, Any]) -> Any:
    """`Class.method` of a new instance, a method of `Solution`, or the function `f`."""
    owner, _, method = name.rpartition(".")
    kind = namespace.get(owner or "Solution")
    if kind is not None and hasattr(kind, method):
        return getattr(kind(), method)
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    return namespace[name]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return ""


def _check(job: dict[str, Any], requests: io.BufferedReader, replies: io.TextIOBase) -> None:
    """Run the tests in order, announcing each before it starts and reporting how it ended.

    With job["stop_early"], the first that fails is the last.
    """
    module = sys.modules["tests"] = types.ModuleType("tests")  # where dataclasses look up names in annotations
    namespace = module.__dict__
    if job["reference"]:
        exec(compile(job["reference"], "setup.py", "exec", dont_inherit=True), namespace)
    for name in job["modules"]:
        namespace[name] = importlib.import_module(name)
    link = _Link(requests, replies, {name: namespace[name] for name in job["classes"]})
    for name in job["names"]:
        # Names the reference gets by `import *` stay; the requested function is the submission's even if a stub exists.
        if job["entry_point"] or name not in namespace:
            namespace[name] = _Function(link, name)
    if job["setup"]:
        link.say(begin="setup")
        exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)
    for index, test in enumerate(job["tests"]):
        link.say(begin=index)
        try:
            exec(compile(test, f"test_{index}.py", "exec", dont_inherit=True), namespace)
        except Exception as error:
            link.say(test=index, error=type(error).__name__, message=_message(error))
            if job["stop_early"]:
                break
        else:
            link.say(test=index)
    link.say(done=True)


class _Link:
    """The checker's connection to the submission's process."""

    def __init__(self, requests: io.BufferedReader, replies: io.TextIOBase, classes: plain.Classes) -> None:
        self._requests, self._replies, self._classes = requests, replies, classes

    def say(self, **message: Any) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()

    def ask(self, operation: str, *arguments: Any) -> Any:
        def reference(value: Any) -> int:
            if isinstance(value, Remote):
                return value._number
            raise plain.NotPlainError(f"a test passes a {type(value).__name__} to the submission, which is not plain")

        self.say(operation=operation, arguments=plain.dumps(list(arguments), reference, self._classes))
        outcome, _, text = self._requests.readline().partition(b" ")
        if outcome == b"value":
            return plain.loads(text, lambda number: Remote(self, number), self._classes)
        name, message = json.loads(text)
        kind = getattr(builtins, name, None)
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        if not is_error or (kind is StopIteration and operation != "next"):  # it would end `all(map(f, cases))`
            kind = RuntimeError
        raise kind(message)  # type: ignore[misc]


class _Function:
    """One of the submission's functions, by name."""

    def __init__(self, link: _Link, name: str) -> None:
        self._link, self._name = link, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self._name, arguments, keywords)


class Remote:
    """Proxy for one of the submission's objects that is not plain. It equals only itself and has no truth value.

    Calls, attributes, items and iteration are the submission's; `in` compares what iteration yields here, since the
    submission would claim to contain whatever it is asked for. It has no length.
    """

    def __init__(self, link: _Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy would read this process's memory at the address in `__array_interface__`
            raise AttributeError(name)
        return self._link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __iter__(self) -> Any:
        return self._link.ask("iter", self)

    def __next__(self) -> Any:
        return self._link.ask("next", self)

    def __bool__(self) -> bool:
        raise TypeError("the submission returned an object that is neither true nor false")

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__
