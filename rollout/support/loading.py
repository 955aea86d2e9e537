"""Load functions by reference: `package.module:name` or `path/to/file.py:name`."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from rollout.support.errors import RunError
from rollout.support.names import nearest

_IMPORTING = (__file__, importlib.__file__)  # files whose frames stand between a user's module and who loads it


def load_object(reference: str, *, kind: str, base_dir: Path | None = None) -> Any:
    """The object that `reference` names. Each file is executed only once per process.

    Args:
        reference: `package.module:name`, or `path/to/file.py:name`.
        kind: what the object is to the user, such as "reward"; used in error messages.
        base_dir: directory that relative paths start from; None: the working directory.

    Raises:
        ValueError: the module, file or name does not exist, the file is not Python, or executing it raises.
    """
    where, _, name = reference.rpartition(":")
    module = _load_file(where, kind, base_dir) if where.endswith(".py") else _load_module(where, kind)
    if not hasattr(module, name):
        known = [known for known, value in vars(module).items() if callable(value)]
        raise ValueError(f"{kind} {reference!r}: {where} does not define {name!r}.{nearest(name, known)}")
    return getattr(module, name)


def _load_module(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(kind, name, error) from error  # the module exists, but one of its own imports does not
        raise ValueError(
            f"{kind}: module {name!r} cannot be imported: {error}. Install it, or give path/to/file.py:function."
        ) from error
    except RunError:  # a run that the module starts: it says why it cannot be
        raise
    except (Exception, SystemExit) as error:
        raise _failed(kind, name, error) from error


def _load_file(where: str, kind: str, base_dir: Path | None) -> ModuleType:
    path = ((base_dir or Path.cwd()) / Path(where).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(
            f"{kind}: file {path} does not exist. Correct the path. Relative paths start in the "
            f"{'working directory' if base_dir is None else 'recipe folder'}; in a recipe, ./ and ../ mean its folder."
        )
    name = f"_loaded_{path.stem}_{abs(hash(path)):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution, like the import system: dataclasses look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, SyntaxError) and error.filename == str(path):
                raise ValueError(f"{kind}: {path}:{error.lineno}: {error.msg}. Correct the file.") from None
            if isinstance(error, RunError):
                raise
            if isinstance(error, Exception | SystemExit):  # not an interrupt or the end of a time limit
                raise _failed(kind, path, error) from error
            raise
    return sys.modules[name]


def _failed(kind: str, where: object, error: BaseException) -> ValueError:
    """The error for a module that raises when it is executed, with the frames of the module and what it calls."""
    trace = error.__traceback__
    while trace and (trace.tb_frame.f_code.co_filename in _IMPORTING or "<frozen" in trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    frames = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    return ValueError(f"{kind}: {where} cannot be loaded: it raises {type(error).__name__}. Correct it.\n{frames}")
