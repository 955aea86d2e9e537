"""Runs a program as `python main.py` would, in a process forked from a warm interpreter. Standard library only.

    open_streams()              sys.stdin, sys.stdout and sys.stderr on descriptors 0 to 2
    run(preamble, source)       run the module __main__, then exit
    leave(code)                 exit like the interpreter: threads, exit functions, destructors, buffers

The caller has called `prepare` and written `encode(source)` to its path: programs read and execute themselves.
What still differs from a fresh interpreter: sys.flags, the frames below the program's first, the modules already
imported, and that only the program's own module is destroyed at the end.
"""

import atexit
import builtins
import gc
import importlib.machinery
import io
import os
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

FILE = "main.py"
_FRAMES = 8  # of the sandbox, `exec` included, below the program's first; counting them here would cost 0.1 ms
_LARGEST = 2**31 - 1  # recursion limit
_FLUSH_FAILED = 120
_PIPE_BLOCK = 4096


_loader = importlib.machinery.SourceFileLoader("__main__", FILE)


def prepare(folder: str) -> str:
    """What all programs in the folder share, made before the process forks; the path of the program's file."""
    global _loader
    path = os.path.join(folder, FILE)
    _loader = importlib.machinery.SourceFileLoader("__main__", path)
    return path


def open_streams() -> None:
    """The standard streams, with the attributes and buffer sizes CPython gives them under LANG=C.UTF-8."""
    sys.stdin = sys.__stdin__ = _stream(0, "<stdin>", "r")
    sys.stdout = sys.__stdout__ = _stream(1, "<stdout>", "w")
    sys.stderr = sys.__stderr__ = _stream(2, "<stderr>", "w", errors="backslashreplace", line_buffering=True)


def _stream(fd: int, name: str, mode: str, *, errors: str = "surrogateescape", **options: Any) -> io.TextIOWrapper:
    raw: Any = io.FileIO(fd, mode, closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw, _PIPE_BLOCK) if mode == "r" else io.BufferedWriter(raw, _PIPE_BLOCK)
    stream: Any = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, newline="\n", **options)
    stream.mode = mode
    return stream


def encode(source: str) -> bytes:
    """The file's content. Compiling bytes honours a byte order mark and an encoding declaration."""
    return source.encode("utf-8", "surrogatepass")


def run(preamble: str, source: str) -> NoReturn:
    code = 1
    try:
        _run_main(preamble, encode(source))
        code = 0
    except SystemExit as exit:
        code = _status(exit)
    except BaseException as error:
        code = _report(error)
    leave(code)


def _run_main(preamble: str, source: bytes) -> None:
    """Its frame holds the module, so it must return before `leave` destroys the program's objects."""
    path = _loader.path
    module: Any = types.ModuleType("__main__")
    module.__loader__ = _loader
    module.__annotations__ = {}
    module.__builtins__ = builtins
    module.__file__ = path
    module.__cached__ = None
    sys.modules["__main__"] = module
    sys.argv = [FILE]
    sys.orig_argv = ["python", FILE]
    sys.path.insert(0, path.removesuffix(f"/{FILE}"))
    _hide_frames()
    for part, name in [(preamble, "preamble.py"), (source, path)]:
        if part:
            exec(compile(part, name, "exec", dont_inherit=True), module.__dict__)


def _hide_frames() -> None:
    """Let the program recurse as deep as if its frame were the first: the recursion limit excludes ours."""
    get, set = sys.getrecursionlimit, sys.setrecursionlimit

    def setrecursionlimit(limit: int, /) -> None:
        set(limit)  # raises for what is no limit
        set(min(limit + _FRAMES, _LARGEST))

    setrecursionlimit(get())
    sys.setrecursionlimit = setrecursionlimit
    sys.getrecursionlimit = lambda: get() - _FRAMES


def _status(exit: SystemExit) -> int:
    if exit.code is None or isinstance(exit.code, int):
        return exit.code or 0
    print(exit.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> int:
    """Hand an uncaught exception to the program's hook; the exit status."""
    frames = error.__traceback__
    for _ in range(2):  # those of this file
        frames = frames and frames.tb_next
    try:
        sys.excepthook(type(error), error.with_traceback(frames), frames)
    except SystemExit as exit:
        return _status(exit)
    except BaseException:
        traceback.print_exc()
    return 1


def leave(code: int) -> NoReturn:
    """The steps of Py_FinalizeEx, except that only the program's own module is destroyed."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if not _flush():
            code = _FLUSH_FAILED
        gc.collect(0)  # with the module alive: it also puts open files before the buffers they write to
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        sys.modules.pop("__main__", None)
        gc.collect()  # calls destructors, which may write
        _flush()
    except BaseException:
        traceback.print_exc()
        code = code or 1
    finally:
        os._exit(code & 0xFF)


def _flush() -> bool:
    flushed = True
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            traceback.print_exc()
            flushed = False
    return flushed
