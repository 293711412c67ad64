"""The jail of Python graders: every way out that we know ends in a flag, and the parent lives.

Each attempt names the wall that stops it. Where one wall fails to be put up, nothing may run at all.
"""

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from luthier.errors import EvaluationError
from luthier.evaluation.graders import _jail_runner as runner
from luthier.evaluation.graders._jail import run_jailed
from luthier.evaluation.graders.base import Graded, Host, Limits, Sample, build_grader, validate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Python graders are refused elsewhere")

HOST = Host(limits=Limits(seconds=1, memory_bytes=256 * 2**20))
CANARY = "canary-5d1f0c77"
REFUSED = "Operation not permitted"
LATE = "took longer than 1 s"
C = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"  # the runner has it in memory already
RAISE = "\nif found == -1:\n    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"


def call(number: int, *arguments: str) -> str:
    """A system call by its number on x86_64, where these tests name any."""
    return f"{C}import os\nfound = libc.syscall({number}, {', '.join(arguments) or '0'}){RAISE}"


def function(text: str) -> str:
    return f"{C}import os\nfound = libc.{text}{RAISE}"


# name: (what is tried, the wall, what the flag's details say); an attempt that works would be rewarded
ESCAPES: dict[str, tuple[str, str, str]] = {
    "import socket": ("import socket", "seccomp: no file opens", "No module named 'socket'"),
    "import subprocess": ("import subprocess", "seccomp: no file opens", "No module named 'subprocess'"),
    "import of a package": ("import numpy", "seccomp: no file opens", "No module named 'numpy'"),
    "socket in C": (function("socket(2, 1, 0)"), "seccomp", REFUSED),
    "unix socket in C": (function("socket(1, 1, 0)"), "seccomp", REFUSED),
    "read a file": ("open('/etc/passwd').read()", "seccomp", REFUSED),
    "read a file in C": (function("open(b'/etc/passwd', 0)"), "seccomp", REFUSED),
    "list a folder": ("import os\nos.listdir('/')", "seccomp", REFUSED),
    "ask whether a file is there": ("import os\nos.stat('/etc/passwd')", "seccomp", REFUSED),
    "follow a link": ("import os\nos.readlink('/proc/self/exe')", "seccomp", REFUSED),
    "the parent's environment": ("open('/proc/PARENT/environ').read()", "seccomp", REFUSED),
    "its own first environment": ("open('/proc/self/environ').read()", "seccomp", REFUSED),
    "the environment": ("import os\nos.environ['LUTHIER_CANARY']", "an environment of its own", "KeyError"),
    "the parent's memory": (call(310, "PARENT", "0", "0", "0", "0", "0"), "seccomp", REFUSED),
    "write a file": ("open('evil', 'w').write('x')", "seccomp", REFUSED),
    "write to the temporary folder": ("open('/tm' + 'p/evil', 'w').write('x')", "seccomp", REFUSED),
    "make a folder": ("import os\nos.mkdir('evil')", "seccomp", REFUSED),
    "delete a file": ("import os\nos.unlink('/etc/passwd')", "seccomp", REFUSED),
    "make a link": ("import os\nos.symlink('/', 'evil')", "seccomp", REFUSED),
    "a file in memory": (call(319, "b'x'", "0"), "seccomp", REFUSED),
    "go elsewhere": ("import os\nos.chdir('/etc')", "seccomp", REFUSED),
    "fork": ("import os\nos.fork()", "seccomp", REFUSED),
    "fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "timer",
        LATE,
    ),
    "fork in C": (function("fork()"), "seccomp", REFUSED),
    "clone3": (call(435, "0", "0"), "seccomp", REFUSED),
    "thread": ("import _thread\n_thread.start_new_thread(print, ())", "seccomp", "can't start new thread"),
    "run a program": ("import os\nos.execv('/bin/sh', ['sh'])", "seccomp", REFUSED),
    "run a shell": ("import os\nif os.system('true') != 0:\n    raise OSError('no shell')", "seccomp", "no shell"),
    "spawn": ("import os\nos.posix_spawn('/bin/true', ['true'], {})", "seccomp", REFUSED),
    "trace the parent": (call(101, "16", "PARENT", "0", "0"), "seccomp", REFUSED),
    "mount": (call(165, "0", "b'/'", "b'tmpfs'", "0", "0"), "seccomp", REFUSED),
    "namespaces": (call(272, str(0x10000000)), "seccomp", REFUSED),
    "bpf": (call(321, "0", "0", "0"), "seccomp", REFUSED),
    "io_uring": (call(425, "8", "0"), "seccomp", REFUSED),
    "keys": (call(250, "0", "0"), "seccomp", REFUSED),
    "another filter": (function("prctl(38, 0, 0, 0, 0)"), "seccomp", REFUSED),
    "higher limits": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "seccomp", "not allowed"),
    "memory that is code": (function("mprotect(libc.getpid, 4096, 7)"), "seccomp", REFUSED),
    "32-bit numbers of calls": (call(0x40000000 + 41, "2", "1", "0"), "seccomp", REFUSED),
    "memory bomb": ("x = []\nwhile True:\n    x.append(bytearray(2**20))", "limits", "MemoryError"),
    "one big piece": ("bytearray(2**40)", "limits", "MemoryError"),
    "endless loop": ("while True:\n    pass", "timer", LATE),
    "endless loop in C": ("10 ** 10 ** 9", "timer", LATE),
    "slow pattern": ("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "timer", LATE),
    "sleep": ("import time\ntime.sleep(1000)", "timer", LATE),
    "never raise": (
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "timer",
        LATE,
    ),
    "stop the timer": ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)", "seccomp", REFUSED),
    "stop the alarm": ("import signal\nsignal.alarm(0)\nwhile True:\n    pass", "seccomp", LATE),
    "ignore the timer": ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)", "seccomp", REFUSED),
    "hold the timer": ("import signal\nsignal.pthread_sigmask(0, [signal.SIGALRM])", "seccomp", REFUSED),
    "end the parent": ("import os\nos.kill(PARENT, 9)", "seccomp", REFUSED),
    "end everybody": ("import os\nos.kill(-1, 9)", "seccomp", REFUSED),
    "end the group": ("import os\nos.killpg(0, 9)", "seccomp", REFUSED),
    "stop itself": ("import signal\nsignal.raise_signal(signal.SIGSTOP)", "seccomp", REFUSED),
    "leave the session": ("import os\nos.setsid()", "seccomp", REFUSED),
    "leave": ("import sys\nsys.exit(0)", "the runner", "SystemExit: 0"),
    "leave with a code": ("import sys\nsys.exit(7)", "the runner", "SystemExit: 7"),
    "leave at once": ("import os\nos._exit(0)", "the parent", "ended with exit code 0 without a reward"),
    "leave at once with a code": ("import os\nos._exit(7)", "the parent", "ended with exit code 7"),
    "abort": ("import os\nos.abort()", "the parent", "was ended by"),
    "crash": ("import ctypes\nctypes.string_at(0)", "the parent", "Segmentation fault"),
    "endless recursion": ("def f():\n    f()\nf()", "Python", "RecursionError"),
    "interrupt": ("raise KeyboardInterrupt", "the runner", "KeyboardInterrupt"),
    "a long message": ("raise ValueError('x' * 10**6)", "the runner", "ValueError: xxx"),
    "half a character": ("raise ValueError('\\ud800')", "the runner", "ValueError: "),
    "much output": (
        "import os\nfor fd in range(3, 16):\n    try:\n        os.write(fd, b'x' * 2**20)\n"
        "    except OSError:\n        pass",
        "limits and the parent",
        "without a reward",
    ),
    "forged lines": (
        "import os\nfor fd in range(3, 16):\n    try:\n        os.write(fd, b'{\"reward\": 1.0}\\n')\n"
        "    except OSError:\n        pass",
        "the parent",
        "wrote to the jail's own output",
    ),
    "closed output": ("import os\nos.closerange(0, 64)", "the parent", "ended with exit code"),
    "no number": ("return 'one'", "the runner", "grade returned a str"),
    "a number too large": ("return 10**400", "the runner", "OverflowError"),
    "not finite": ("return float('inf')", "the parent", "grade returned inf"),
    "a lie about its class": (
        "class F(float):\n    def __float__(self):\n        raise OSError('boo')\nreturn F(1)",
        "the runner",
        "boo",
    ),
    "a message that hangs": (
        "class E(Exception):\n    def __str__(self):\n        while True:\n            pass\nraise E",
        "timer",
        LATE,
    ),
    "the runner's functions": ("import json\njson.dumps = None", "the parent", "ended with exit code 1"),
}


def graded(body: str, host: Host = HOST, text: str = "Paris") -> Graded:
    lines = body.replace("PARENT", str(os.getpid())).split("\n")
    source = "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in lines) + "    return 1.0\n"
    return build_grader({"type": "python", "name": "code", "source": source}).grade(Sample.of(text), {}, host)


@pytest.mark.parametrize("name", ESCAPES)
def test_every_way_out_ends_in_a_flag(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body, _, words = ESCAPES[name]
    if "libc.syscall" in body and os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    monkeypatch.setenv("LUTHIER_CANARY", CANARY)
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    grade = graded(body)
    assert grade.reward == 0.0
    assert grade.errors.python_grader_runtime_error
    assert not grade.errors.python_grader_server_error
    assert words in (grade.errors.python_grader_runtime_error_details or "")
    assert CANARY not in grade.problem
    assert len(grade.problem) < 2000
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - start < 15


def test_no_process_is_left() -> None:
    before = psutil.Process().children(recursive=True)
    graded("import os\nos.fork()")
    graded("while True:\n    pass")
    assert psutil.Process().children(recursive=True) == before


def test_a_grader_dies_with_its_parent() -> None:
    program = (
        "from luthier.evaluation.graders._jail import run_jailed\n"
        "from luthier.evaluation.graders.base import Limits\n"
        "run_jailed('def grade(s, i):\\n    while True: pass', {}, {}, Limits(seconds=50))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        found = until(lambda: [p for p in psutil.Process(parent.pid).children() if p.cpu_times().user > 0.3])
        parent.kill()
    (grader,) = found
    assert until(lambda: not grader.is_running() or grader.status() == psutil.STATUS_ZOMBIE)


def until(found: Callable[[], Any]) -> Any:
    """What is found within 20 seconds."""
    end = time.monotonic() + 20
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def test_all_walls_stand_that_this_machine_allows() -> None:
    layers = run_jailed("def grade(sample, item):\n    return 1.0\n", {}, {}, HOST.limits).layers
    assert {"limits", "seccomp"} <= set(layers)
    assert "user" not in layers or os.geteuid() == 0


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("print('{\"reward\": 0.0}')", 1.0),
        ("import sys\nsys.stdout.write('x' * 10**6)\nsys.stderr.write('x' * 10**6)", 1.0),
        ("import json, math, re, datetime, statistics, difflib\nreturn math.floor(1.5)", 1.0),
        ("import datetime\nreturn datetime.datetime.strptime('2', '%d').day", 2.0),
        ("import decimal\nreturn float(decimal.Decimal('0.5'))", 0.5),
        ("import random, hashlib, uuid\nrandom.random(), uuid.uuid4()\nreturn len(hashlib.sha256(b'').digest())", 32.0),
        ("import collections.abc, urllib.parse\nreturn len(urllib.parse.quote('é'))", 6.0),
        ("return 'é'.encode('latin-1')[0]", 233.0),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nreturn A(3).x", 3.0),
        ("import difflib\nreturn difflib.SequenceMatcher(None, 'ab', 'ab').ratio()", 1.0),
        ("import time\ntime.sleep(0.01)\nreturn time.time() > 0", 1.0),
        ("x = '\\d'\nreturn True", 1.0),
        ("return sum(len(x) for x in [bytes(10**6)] * 10) / 10**7", 1.0),
        ("return len(sample['output_text']) + len(item)", 5.0),
        ("return -2", -2.0),
    ],
)
def test_what_computes_is_let_be(body: str, reward: float) -> None:
    grade = graded(body)
    assert (grade.reward, grade.problem) == (reward, "")


def test_a_grade_can_be_repeated() -> None:
    assert graded("return hash('Paris') % 1000").reward == graded("return hash('Paris') % 1000").reward


def test_the_sample_is_seen_as_it_is() -> None:
    tool = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    source = "def grade(sample, item):\n    raise ValueError(repr((sample, item)))\n"
    sample = Sample.of('{"a": ["\u00e9", null]}', tools=[tool])
    outcome = run_jailed(source, sample.values(), {"x": [1, {"y": True}]}, HOST.limits)
    assert repr((sample.values(), {"x": [1, {"y": True}]})) in outcome.details


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(sample, item)\n    return 1", "SyntaxError"),
        ("return 1", "outside function"),
        ("def grad(sample, item):\n    return 1", "defines no function grade"),
        ("print(grade)", "defines no function grade"),
        ("x = '''grade'''", "defines no function grade"),
        ("def f():\n    def grade(sample, item): pass", "defines no function grade"),
        ("\x00", "SyntaxError|ValueError"),
        ("\ud800", "grader.source"),
        ("(" * 5000, "SyntaxError|MemoryError|RecursionError"),
        ("x = " + "-" * 100_000 + "1\ndef grade(s, i): pass", "Error|ended by"),
        ("x = " + "1+" * 100_000 + "1\ndef grade(s, i): pass", "Error|ended by"),
        ("x = (" * 90 + ")" * 90 + "\ndef grade(s, i)", "SyntaxError"),
        ("#" * (256 * 1024 + 1), "at most"),
        ("é" * (128 * 1024 + 1), "bytes; expected at most"),
        ("", "grader.source"),
    ],
)
def test_a_source_that_cannot_work_is_refused(source: str, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        validate({"type": "python", "name": "code", "source": source}, HOST)


@pytest.mark.parametrize(
    "definition", ["grade = lambda s, i: 1", "from math import hypot as grade", "if 1:\n    grade = max"]
)
def test_a_source_may_define_it_in_other_ways(definition: str) -> None:
    validate({"type": "python", "name": "code", "source": definition}, HOST)


def test_a_source_is_not_run_to_be_validated() -> None:
    start = time.monotonic()
    validate({"type": "python", "name": "c", "source": "def grade(s, i): return 1\nwhile True: pass"}, HOST)
    assert time.monotonic() - start < 2


# a process under a filter that refuses one system call more, as containers have, and in it a grader
CONTAINER = """
import ctypes, json, os, struct
from luthier.errors import EvaluationError
from luthier.evaluation.graders import _jail_runner as runner
from luthier.evaluation.graders._jail import run_jailed
from luthier.evaluation.graders.base import Host, Limits, validate

refuse = [(runner.LOAD, 0, 0, 0), (runner.EQUAL, 0, 1, NUMBER), (runner.RETURN, 0, 0, runner.REFUSE)]
code = b"".join(struct.pack("=HBBI", *step) for step in [*refuse, (runner.RETURN, 0, 0, runner.ALLOW)])
kept = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
runner._prctl(libc, runner.PR_SET_NO_NEW_PRIVS, 1)
runner._prctl(libc, runner.PR_SET_SECCOMP, runner.SECCOMP_MODE_FILTER, ctypes.addressof(program))
source = "def grade(sample, item):\\n    return 1.0\\n"
outcome = run_jailed(source, {}, {}, Limits())
try:
    validate({"type": "python", "name": "code", "source": source}, Host())
    refusal = ""
except EvaluationError as error:
    refusal = str(error)
print(json.dumps([outcome.ending, outcome.reward, outcome.layers, outcome.details, refusal]))
"""


def in_container(x86_64: int, aarch64: int) -> list[Any]:
    number = {"x86_64": x86_64, "aarch64": aarch64}[os.uname().machine]
    program = CONTAINER.replace("NUMBER", str(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def test_without_the_filter_nothing_runs() -> None:
    """prctl is refused, so that no filter can be had."""
    ending, reward, layers, details, refusal = in_container(157, 167)
    assert (ending, reward, layers) == ("no_jail", 0.0, [])
    assert "is refused here" in details
    assert "run only in a jail, which cannot be had here" in refusal


def test_without_namespaces_the_filter_is_enough() -> None:
    """unshare is refused, as in most containers."""
    ending, reward, layers, details, refusal = in_container(272, 97)
    assert (ending, reward, details, refusal) == ("reward", 1.0, "", "")
    assert "seccomp" in layers
    assert "namespaces" not in layers


def test_a_jail_that_cannot_be_had_is_a_flag_of_its_own() -> None:
    """The timer is one of the walls, and this time is none."""
    grade = build_grader({"type": "python", "name": "code", "source": "def grade(s, i): return 1"}).grade(
        Sample.of("x"), {}, Host(limits=Limits(seconds=-1.0))
    )
    assert grade.reward == 0.0
    assert (grade.errors.python_grader_server_error, grade.errors.python_grader_runtime_error) == (True, False)
    assert grade.errors.python_grader_server_error_type == "no_jail"


def test_too_much_to_look_at_is_a_flag() -> None:
    grade = graded("return 1.0", Host(limits=Limits(text_chars=100)), "x" * 200)
    assert (grade.reward, grade.errors.truncated_observation_error) == (0.0, True)


def test_many_are_graded_at_once() -> None:
    rewards: list[float] = []
    threads = [threading.Thread(target=lambda: rewards.append(graded("").reward)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == [1.0] * 8


# the filter, interpreted: the other architecture cannot be run here


def decided(program: list[bytes], data: dict[int, int]) -> int:
    """What a filter returns for a system call; `data` has the words of `struct seccomp_data` by their place."""
    at, word = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack("=HBBI", program[at])
        at += 1
        if code == runner.LOAD:
            word = data[value]
        elif code == runner.RETURN:
            return int(value)
        else:
            holds = word == value if code == runner.EQUAL else bool(word & value)
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", runner.ARCHITECTURES)
def test_the_filter_allows_what_is_listed_and_nothing_else(machine: str) -> None:
    program, column = runner._filter(machine), list(runner.ARCHITECTURES).index(machine)
    listed = {numbers[column] for numbers in runner.CALLS.values()}
    mapping = {numbers[column] for numbers in runner.MAPPING_CALLS.values()}
    for number in [*range(1000), 2**30, 2**30 + 41, 2**31, 2**32 - 1]:
        for protection in (3, 7):
            data: dict[int, Any] = {0: number, 4: runner.ARCHITECTURES[machine], 32: protection}
            allowed = number in listed or (number in mapping and not protection & runner.PROT_EXEC)
            assert decided(program, data) == (runner.ALLOW if allowed else runner.REFUSE)
    others = [0, 0x40000003, *(a for m, a in runner.ARCHITECTURES.items() if m != machine)]
    assert {decided(program, {0: 1, 4: other, 32: 3}) for other in others} == {runner.KILL_PROCESS}


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(runner.NoJail, match="this is riscv64"):
        runner._filter("riscv64")
