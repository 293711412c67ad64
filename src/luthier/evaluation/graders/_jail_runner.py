"""The program of the jail: it locks itself in, then runs a grader's source. Started by `_jail.py`, never imported.

It reads one JSON object from its standard input and writes two lines of JSON to its standard output: the walls that
stand, before any of the source is read, and what came of the source. It needs nothing but Python's own library.

The walls, in the order in which they are put up: limits of the system (memory, processor time, files, processes); where
the program runs as root, the user `nobody`; namespaces of its own, among them a network without devices (where the
system lets a user have them); a timer that ends the process; and a seccomp filter that allows the few system calls that
computing needs. No file can be opened by then, so every module that the source may use is imported before.
"""

import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import struct
import symtable
import sys
from collections.abc import Callable
from typing import Any

FILE = "grader.py"
NOBODY = 65534
OUTPUT_BYTES = 65536

MODULES = """
    abc array ast base64 binascii bisect calendar cmath codecs collections collections.abc colorsys contextlib copy csv
    dataclasses datetime _strptime decimal difflib enum fnmatch fractions functools hashlib heapq hmac html
    html.entities html.parser io itertools json keyword math numbers operator pprint random re shlex statistics string
    struct textwrap time timeit token tokenize traceback types typing unicodedata urllib.parse uuid warnings
    xml.etree.ElementTree zlib zoneinfo encodings.ascii encodings.latin_1 encodings.utf_16 encodings.idna
"""
"""What a grader may import, if its source names it."""
NEEDED_UNASKED = {"_strptime": "time", "encodings": "code"}
"""Modules that Python itself imports late: what must stand in the source instead of their name."""

# Linux: include/uapi/linux/{audit,prctl,sched,seccomp,bpf_common}.h
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    1 << 30,
)
KILL_PROCESS, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # 0x00050000 + errno 1, EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
PROT_EXEC = 4
AT_NUMBER, AT_ARCHITECTURE, AT_THIRD_ARGUMENT = 0, 4, 32  # in struct seccomp_data

# name: number on x86_64, on aarch64
CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
MAPPING_CALLS = {"mmap": (9, 222), "mprotect": (10, 226)}
"""Allowed for memory that is no code."""


class NoJail(Exception):
    """A wall that must stand could not be put up."""


def main() -> None:
    """Lock this process in, then run the source."""
    request = json.loads(sys.stdin.buffer.read())
    source: str = request["source"]
    say = _take_output()
    try:
        for name in MODULES.split():
            if NEEDED_UNASKED.get(name.partition(".")[0], name.partition(".")[0]) in source:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        layers = _lock(request["memory_bytes"], request["seconds"])
    except (NoJail, OSError, ValueError) as error:
        say({"no_jail": str(error)})
        os._exit(0)
    say({"layers": layers})
    if request["only_check"]:
        say(_checked(source))
    else:
        say(_graded(source, request["sample"], request["item"]))
    os._exit(0)


def _take_output() -> Callable[[dict[str, Any]], None]:
    """How the parent is told; the three standard streams lead nowhere from now on."""
    output = os.dup(1)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

    def say(what: dict[str, Any]) -> None:
        os.write(output, json.dumps(what).encode("ascii") + b"\n")

    return say


def _lock(memory_bytes: int, seconds: float) -> list[str]:
    """Put up the walls, and say which of them stand.

    Raises:
        NoJail: the filter of system calls cannot be had; the others alone would not do.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    call_filter = _filter(os.uname().machine)
    layers = ["limits"]
    _limit(memory_bytes, math.ceil(seconds) + 1)
    with contextlib.suppress(PermissionError):  # a root without privileges, as containers have
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            layers.append("user")
    own = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS
    if libc.unshare(ctypes.c_int(own)) == 0:
        layers.append("namespaces")
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    # it ends the process; the filter lets nobody stop, catch or block it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.setitimer(signal.ITIMER_REAL, seconds)
    code = ctypes.create_string_buffer(b"".join(call_filter))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(call_filter), ctypes.addressof(code)))
    _prctl(libc, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))
    try:
        os.close(os.open("/dev/null", os.O_RDONLY))
    except PermissionError:
        return [*layers, "seccomp"]
    raise NoJail("the filter of system calls was accepted and does not filter")


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        _, allowed = resource.getrlimit(what)
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(what, (most, most))


def _prctl(libc: ctypes.CDLL, option: int, value: int, address: int = 0) -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, address, 0, 0)]
    if libc.prctl(ctypes.c_int(option), *arguments) != 0:
        raise NoJail(f"prctl {option} is refused here: {os.strerror(ctypes.get_errno())}")


def _filter(machine: str) -> list[bytes]:
    """The instructions of the filter: refuse every system call that is not listed.

    Raises:
        NoJail: the numbers of system calls are not known for this machine.
    """
    if machine not in ARCHITECTURES or struct.calcsize("P") != 8:
        raise NoJail(f"Python graders run on 64-bit x86_64 and aarch64 only; this is {machine}")
    column = list(ARCHITECTURES).index(machine)
    program = [
        _instruction(LOAD, AT_ARCHITECTURE),
        _instruction(EQUAL, ARCHITECTURES[machine], 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD, AT_NUMBER),
    ]
    for numbers in CALLS.values():
        program += [_instruction(EQUAL, numbers[column], 0, 1), _instruction(RETURN, ALLOW)]
    for numbers in MAPPING_CALLS.values():
        program += [
            _instruction(EQUAL, numbers[column], 0, 4),
            _instruction(LOAD, AT_THIRD_ARGUMENT),
            _instruction(ANY_BIT, PROT_EXEC, 0, 1),
            _instruction(RETURN, REFUSE),
            _instruction(RETURN, ALLOW),
        ]
    return [*program, _instruction(RETURN, REFUSE)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _checked(source: str) -> dict[str, Any]:
    """Whether the source is Python that defines `grade`; it is compiled and not run."""
    try:
        compile(source, FILE, "exec")
        names = symtable.symtable(source, FILE, "exec").get_symbols()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"error": _told(error)}
    if not any(name.get_name() == "grade" and (name.is_assigned() or name.is_imported()) for name in names):
        return {"error": "the source defines no function grade(sample, item)"}
    return {"reward": 0.0}


def _graded(source: str, sample: Any, item: Any) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "grader", "__file__": FILE}
    try:
        exec(compile(source, FILE, "exec"), names)  # noqa: S102 - what the jail is for
        if not callable(names.get("grade")):
            return {"error": "the source defines no function grade(sample, item)"}
        reward = names["grade"](sample, item)
        if not isinstance(reward, int | float):
            return {"no_number": f"grade returned a {type(reward).__name__}; expected a number"}
        return {"reward": float(reward)}
    except BaseException as error:  # whatever the source raises is its answer
        return {"error": _told(error)}


def _told(error: BaseException) -> str:
    """An exception in one line, with the line of the source that raised it."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    hint = "; only modules of Python's own library that compute can be imported" * isinstance(error, ImportError)
    where = f" (line {line} of the source)" if line else ""
    return f"{type(error).__name__}: {error}"[:1000] + hint + where


if __name__ == "__main__":
    main()
