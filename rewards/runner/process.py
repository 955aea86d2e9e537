"""Fresh interpreters that talk to this one through a pipe.

They are not multiprocessing children, because those run the parent's __main__ again, and that may be a recipe.
"""

import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

_START = (
    "import sys; fd, module = int(sys.argv[1]), sys.argv[2]; sys.path[:] = sys.argv[3:]; "
    "from importlib import import_module; import_module(module).main(fd)"
)


def start(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process that runs `main(fd)` of a module; fd is its end of the pipe, the connection is ours.

    Only that descriptor is passed on. When this process ends, however it ends, the other reads EOF.
    """
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-c", _START, str(theirs.fileno()), module, *sys.path]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return process, ours
