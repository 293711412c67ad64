"""Starts a command, and ends it with all that it started when standard input ends: whoever held it is gone, or is done.

A folder that was made for it goes with it.

A script of its own, run by file: a training that is killed with `kill -9` can end nobody itself, and would leave a
server behind that holds the memory of a GPU.

    python _vllm_keeper.py FOLDER COMMAND ARGUMENT ...
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType

PATIENCE_SECONDS = 20.0
"""For the command to end by itself once it is told to."""


def main(folder: str, command: list[str]) -> None:
    """Ends with the command's exit code, or when there is nobody left to keep it for."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow, args=(child, folder), daemon=True).start()
    try:
        while os.read(0, 1024):
            pass
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)
        _clear(child.pid, folder)


def _follow(child: "subprocess.Popen[bytes]", folder: str) -> None:
    code = child.wait()
    _clear(child.pid, folder)
    os._exit(code if code >= 0 else 128 - code)  # the main thread is still reading


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _clear(group: int, folder: str) -> None:
    with suppress(ProcessLookupError):  # none of it is left
        os.killpg(group, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
