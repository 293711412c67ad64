"""Replies of a server beside the training, by a stand-in for vLLM: what is asked, when weights are told, what fails.

That a real vLLM says what is taken for granted here, tests marked `vllm` show.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.small_engine import interpreter

from luthier.adapters.base import Injected
from luthier.adapters.dora import DoRA
from luthier.adapters.lora import LoRA
from luthier.engine.vllm import KEEPER, Server, VllmSampler, held_bytes
from luthier.errors import ModelError, ServiceError
from luthier.models.load import LoadedModel
from luthier.recipe import VllmSettings

ASKED = [[1, 2, 3], [1, 5]]
STOPS = frozenset(range(20))
Make = Callable[..., VllmSampler]


@pytest.fixture
def loaded(make_tiny: Callable[..., LoadedModel]) -> LoadedModel:
    return make_tiny()


@pytest.fixture
def injected(loaded: LoadedModel) -> Injected:
    return LoRA(rank=2).inject(loaded.model, 0)


@pytest.fixture
def make(loaded: LoadedModel, injected: Injected, tmp_path: Path) -> Iterator[Make]:
    made: list[VllmSampler] = []

    def one(trouble: str = "", **settings: Any) -> VllmSampler:
        more = ("--told", str(tmp_path / "told"), "--trouble", trouble)
        given = {"python": str(interpreter(tmp_path)), "arguments": more, **settings}
        made.append(VllmSampler(Server(VllmSettings(**given), loaded, 128, tmp_path), injected, STOPS))
        return made[-1]

    yield one
    for sampler in made:
        sampler.close()


def told(tmp_path: Path, path: str) -> list[Any]:
    lines = [json.loads(line) for line in (tmp_path / "told").read_text(encoding="utf-8").splitlines()]
    return [body for asked, body in lines if asked == path]


def test_each_prompt_is_asked_with_its_seed_and_limit_and_answered_in_order(make: Make, tmp_path: Path) -> None:
    prompts, seeds = [ASKED[i % 2] for i in range(40)], [*range(38), 2**63, 2**64 - 1]
    limits = [1 + i % 9 for i in range(40)]
    replies = make()(prompts, limits, seeds, 0.7)
    asked = told(tmp_path, "/v1/completions")
    assert sorted(body["seed"] for body in asked) == sorted([*range(38), 0, 2**63 - 1])
    body = next(body for body in asked if body["seed"] == 5)
    assert body == {
        "model": "luthier-1",
        "prompt": ASKED[1],
        "max_tokens": 6,
        "temperature": 0.7,
        "seed": 5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "stop_token_ids": sorted(STOPS),
        "logprobs": 0,
        "return_token_ids": True,
    }
    one_by_one = make()
    for i in (0, 7, 39):
        assert one_by_one([prompts[i]], [limits[i]], [seeds[i]], 0.7) == [replies[i]]
    ended = [reply for reply in replies if reply.finished]
    assert ended and all(reply.stop_id in STOPS for reply in ended)
    for reply, limit in zip(replies, limits, strict=True):
        assert STOPS.isdisjoint(reply.ids) and (reply.finished or len(reply.ids) == limit)
        assert len(reply.logprobs) == reply.completion_tokens


def test_weights_are_told_when_they_are_others_and_only_then(make: Make, injected: Injected, tmp_path: Path) -> None:
    sampler = make()
    first = sampler(ASKED, [4, 4], [0, 1], 1.0)
    assert sampler(ASKED, [4, 4], [0, 1], 1.0) == first
    parameter = next(iter(injected.trainable.values()))
    with torch.no_grad():
        parameter[0, 0] += 1e-7  # the smallest step of an optimizer
    moved = sampler(ASKED, [4, 4], [0, 1], 1.0)
    assert moved != first
    with torch.no_grad():
        parameter[0, 0] += 1.0
    sampler(ASKED, [4, 4], [0, 1], 1.0)
    assert [body["lora_name"] for body in told(tmp_path, "/v1/load_lora_adapter")] == [
        "luthier-1",
        "luthier-2",
        "luthier-3",
    ]
    assert [body["lora_name"] for body in told(tmp_path, "/v1/unload_lora_adapter")] == ["luthier-1", "luthier-2"]
    (left,) = {Path(body["lora_path"]).parent for body in told(tmp_path, "/v1/load_lora_adapter")}
    assert sorted(path.name for path in left.glob("luthier-*")) == ["luthier-3"]
    sampler.close()
    assert not left.exists()


def test_a_server_that_was_closed_is_started_again_with_the_weights(make: Make, tmp_path: Path) -> None:
    sampler = make()
    first = sampler(ASKED, [4, 4], [0, 1], 1.0)
    sampler.close()
    sampler.close()
    assert sampler(ASKED, [4, 4], [0, 1], 1.0) == first
    assert len(told(tmp_path, "/v1/load_lora_adapter")) == 2


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("start", r"ended while it started; the end of .*vllm\.log:\nno room for the cache"),
        ("load", r"/v1/load_lora_adapter with status 400: .*expected target modules"),
        ("failure", "/v1/completions with status 500.*the same command goes on"),
        ("death", "vLLM does not answer .*the same command goes on"),
        ("prompt", "it answers another prompt"),
        ("count", "log-probabilities, of at most 30"),
        ("infinite", "no finite number"),
        ("early", "for 'stop'"),
        ("old", "not what was asked for"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_made_up(trouble: str, words: str, make: Make) -> None:
    with pytest.raises(ServiceError, match=rf"(?s){words}"):
        make(trouble)(ASKED, [30, 30], [0, 3], 1.0)


def test_a_server_that_gives_no_answer_is_not_waited_for_for_ever(make: Make) -> None:
    with pytest.raises(ServiceError, match=r"within rollout.vllm.timeout_seconds = 0.5"):
        make("slow", timeout_seconds=0.5)(ASKED, [4, 4], [0, 1], 1.0)


def test_an_interpreter_that_is_none_or_has_no_vllm_is_told_before_anything_is_sampled(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    for python, words in ((tmp_path / "none", "is no program"), (Path(sys.executable), "has no vLLM")):
        with pytest.raises(ModelError, match=words):
            Server(VllmSettings(python=str(python)), loaded, 128, tmp_path).require()


def test_what_a_file_of_the_adapter_does_not_say_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    injected = DoRA(rank=2).inject(loaded.model, 0)
    settings = VllmSettings(python=str(interpreter(tmp_path)))
    with pytest.raises(ModelError, match="its adapter has use_dora"):
        VllmSampler(Server(settings, loaded, 128, tmp_path), injected, STOPS).open()


def test_the_server_is_given_the_training_s_device_or_others_and_its_memory_is_set_aside(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, apart = VllmSettings(python="x", cache_gib=0.5), VllmSettings(python="x", devices="1,2", cache_gib=0.5)
    on_gpu = replace(loaded, device=torch.device("cuda", 1))
    for visible, expected in ((None, "1"), ("4,7", "7")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for settings, devices in ((here, expected), (apart, "1,2")):
            assert Server(settings, on_gpu, 128, tmp_path).environment()["CUDA_VISIBLE_DEVICES"] == devices
    assert held_bytes(here, on_gpu) > 3.5 * 2**30 and held_bytes(apart, on_gpu) == 0
    assert "--enforce-eager" not in Server(here, on_gpu, 128, tmp_path).command(Path("s"), 16)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
{then}
"""


def keeping(folder: Path, then: str) -> list[str]:
    """The command line of a keeper whose command starts another and does something then."""
    (folder / "made").mkdir()
    return [
        sys.executable,
        "-S",
        str(KEEPER),
        str(folder / "made"),
        sys.executable,
        "-S",
        "-c",
        FAMILY.format(then=then),
    ]


def kept(folder: Path, then: str) -> "tuple[subprocess.Popen[str], int]":
    """A keeper, and the pid of what its command started."""
    keeper = subprocess.Popen(keeping(folder, then), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    return keeper, int(keeper.stdout.readline())


@pytest.mark.parametrize("how", ["closed", "told"])
def test_a_command_is_ended_with_its_children_when_nobody_holds_it(how: str, tmp_path: Path) -> None:
    keeper, grandchild = kept(tmp_path, "time.sleep(60)")
    (child,) = (one.pid for one in psutil.Process(keeper.pid).children())
    assert alive(child) and alive(grandchild)
    if how == "closed":
        keeper.communicate()
    else:
        keeper.send_signal(signal.SIGTERM)
    assert gone(child, grandchild)
    keeper.wait(10)
    keeper.communicate()
    assert not list(tmp_path.iterdir())


def test_a_command_that_ends_by_itself_leaves_nobody_behind_and_tells_its_code(tmp_path: Path) -> None:
    keeper, grandchild = kept(tmp_path, "sys.exit(3)")
    assert keeper.wait(10) == 3
    keeper.communicate()
    assert gone(grandchild) and not list(tmp_path.iterdir())


HOLDER = """
import subprocess, sys
keeper = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
keeper.wait()
"""


def test_a_holder_that_is_killed_takes_the_command_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, *keeping(tmp_path, "time.sleep(60)")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    grandchild = int(holder.stdout.readline())
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert gone(grandchild)
    holder.stdout.close()
    deadline = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())
