"""What a submission's process does: run a script, serve calls, check, or run another program. Standard library only.

    run(job, stdin, stdout, stderr)     job["mode"]:
      "script"   job["source"] as __main__, on the three pipes
      "serve"    define job["source"], then answer requests (a line on stdin) by replies (a line on stdout)
      "check"    run job["tests"], trusted code, whose calls of the submission are requests to another process
      "compile", "program"   execute job["argv"] on the three pipes

In "serve" the submission shares this interpreter, and may say whatever it likes on the pipe: it knows no answers. A
reply counts if it carries the nonce of its request, so that nothing can be said in advance. It is `NONCE value TEXT` or
`NONCE error [NAME, MESSAGE]`, and read where what it says is needed: reading a hostile one may take long.
"""

import atexit
import builtins
import importlib
import io
import json
import operator
import os
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

from rewards.programs.sandbox.inside import plain

OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "contains": operator.contains,
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
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8")
    errors = io.FileIO(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(errors, encoding="utf-8", errors="backslashreplace", write_through=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    code = 1
    try:
        if job["mode"] == "script":
            _define(job)
        elif job["mode"] == "serve":
            namespace = _define(job)
            classes = {name: namespace[name] for name in job["classes"]}
            _serve(namespace, classes, os.fdopen(requests, "rb"), os.fdopen(replies, "w", encoding="ascii"))
            os._exit(0)
        elif job["mode"] == "check":
            _check(job, os.fdopen(requests, "rb"), os.fdopen(replies, "w", encoding="ascii"))
        else:
            os.execve(job["argv"][0], job["argv"], dict(os.environ))
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End as the interpreter would: threads are waited for, exit functions run, output is written."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = code or 1
    os._exit(code & 0xFF)


def _define(job: dict[str, Any]) -> dict[str, Any]:
    """The namespace of the submission, run as the main module."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    for part, name in [(job["preamble"], "preamble.py"), (job["source"], "main.py")]:
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
    """`Class.method` of a new object, a method of `Solution`, or the function `f`."""
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
    """Run the tests one after the other; say before each that it begins, and after it how it ended."""
    module = sys.modules["tests"] = types.ModuleType("tests")  # where dataclasses look for names in annotations
    namespace = module.__dict__
    if job["reference"]:
        exec(compile(job["reference"], "setup.py", "exec", dont_inherit=True), namespace)
    for name in job["modules"]:
        namespace[name] = importlib.import_module(name)
    link = _Link(requests, replies, {name: namespace[name] for name in job["classes"]})
    for name in job["names"]:
        # What the reference has by `import *` is not the submission's; the function to write is, stub or not.
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
        else:
            link.say(test=index)
    link.say(done=True)


class _Link:
    """The checker's way to the submission's process."""

    def __init__(self, requests: io.BufferedReader, replies: io.TextIOBase, classes: plain.Classes) -> None:
        self._requests, self._replies, self._classes = requests, replies, classes

    def say(self, **message: Any) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()

    def ask(self, operation: str, *arguments: Any) -> Any:
        def reference(value: Any) -> int:
            if isinstance(value, Remote):
                return value._number
            raise plain.NotPlainError(f"a test gives the submission a {type(value).__name__}, which is no plain value")

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
    """A function of the submission, by name."""

    def __init__(self, link: _Link, name: str) -> None:
        self._link, self._name = link, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self._name, arguments, keywords)


class Remote:
    """An object of the submission that is no plain value. It equals nothing, and has no truth."""

    def __init__(self, link: _Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy would read this process's memory at an address of `__array_interface__`
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

    def __len__(self) -> int:
        return self._link.ask("len", self)

    def __contains__(self, item: Any) -> bool:
        return self._link.ask("contains", self, item)

    def __bool__(self) -> bool:
        raise TypeError("the submission returned an object, which is neither true nor false")

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__
