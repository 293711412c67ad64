"""Replies of a training that a real vLLM writes on the CPU: with the weights of the moment, as training scores them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from tests.conftest import _build_tokenizer
from tests.integration.test_run import RECIPE, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapters.base import Injected
from luthier.adapters.lora import LoRA
from luthier.engine.vllm import LOG, Server, VllmSampler
from luthier.examples import Row
from luthier.models.catalog import resolve
from luthier.models.forest import build_batch
from luthier.models.generate import Generation
from luthier.models.load import LoadedModel, load
from luthier.models.scorer import Scorer
from luthier.recipe import VllmSettings

pytestmark = pytest.mark.vllm

ASKED = [[1, 2, 3, 4, 5, 60, 70, 80], [1, 9, 8, 7]]
STOPS = frozenset({2, *range(40, 90)})
"""So many that replies of a random model end."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are as wide as vLLM's attention on a CPU needs them."""
    folder, tokenizer = tmp_path_factory.mktemp("vllm") / "llama", _build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shaken(injected: Injected, seed: int) -> None:
    """Give every trained tensor other numbers."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in injected.trainable.values():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers) * 0.2)


@pytest.fixture(scope="module")
def sampling(
    vllm_python: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LoadedModel, Injected, VllmSampler]]:
    loaded = load(resolve(str(model)), precision="float32", device="cpu")
    # a kept start is a file of twice the rank; ranks by layer are patterns of the file
    injected = LoRA(rank=4, init="pissa", ranks={"down_proj": 6}).inject(loaded.model, 0)
    folder = tmp_path_factory.mktemp("log")
    sampler = VllmSampler(
        Server(VllmSettings(python=vllm_python, cache_gib=0.25), loaded, 256, folder), injected, STOPS
    )
    yield loaded, injected, sampler
    sampler.close()


def drift(loaded: LoadedModel, asked: list[list[int]], replies: list[Generation], temperature: float) -> float:
    """The largest distance of a log-probability from that of our own scorer, in nats."""
    rows = []
    for i, (prompt, reply) in enumerate(zip(asked, replies, strict=True)):
        ids = (*reply.ids, *([] if reply.stop_id is None else [reply.stop_id]))
        rows.append(Row((*prompt, *ids), (*(0.0,) * len(prompt), *(1.0,) * len(ids)), str(i)))
    with torch.no_grad():
        scored = Scorer(loaded.model).at(temperature).token_logprobs(build_batch(rows))
    return float((scored - torch.tensor([one for reply in replies for one in reply.logprobs])).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_are_those_of_our_scorer_at_the_temperature_of_the_sampling(
    temperature: float, sampling: tuple[LoadedModel, Injected, VllmSampler]
) -> None:
    loaded, injected, sampler = sampling
    for weights in (1, 2):  # a server that kept the first ones would be nats away
        shaken(injected, weights)
        asked = [prompt for prompt in ASKED for _ in range(8)]
        replies = sampler(asked, [24] * 16, range(16), temperature)
        assert drift(loaded, asked, replies, temperature) < 1e-3
    shaken(injected, 3)
    assert drift(loaded, asked, replies, temperature) > 0.1
    assert any(reply.finished for reply in replies) and not all(reply.finished for reply in replies)
    for reply in replies:
        assert reply.stop_id in STOPS if reply.finished else len(reply.ids) == 24
        assert STOPS.isdisjoint(reply.ids) and len(reply.logprobs) == reply.completion_tokens


def test_a_reply_is_decided_by_its_seed_and_its_limit(sampling: tuple[LoadedModel, Injected, VllmSampler]) -> None:
    _, injected, sampler = sampling
    shaken(injected, 1)
    seeds = [0, 1, 2**63 - 1, 2**64 - 1]  # the last one is no seed to vLLM, where it is read as -1
    first = sampler([ASKED[0]] * 4, [12] * 4, seeds, 1.0)
    assert len({reply.ids for reply in first}) > 1
    again = sampler([ASKED[0]] * 4, [12] * 4, seeds, 1.0)
    assert [reply.ids for reply in again] == [reply.ids for reply in first]
    short = sampler([ASKED[0]] * 4, [1, 2, 3, 4], seeds, 1.0)
    for limit, cut, whole in zip((1, 2, 3, 4), short, first, strict=True):
        assert cut.completion_tokens <= limit and cut.ids == whole.ids[: len(cut.ids)]
    greedy = sampler([ASKED[0]] * 4, [12] * 4, seeds, 0.0)
    assert len({reply.ids for reply in greedy}) == 1


ONLINE = """
[objective]
type = "grpo"
[rollout]
max_new_tokens = 12
group_size = 4
validation_prompts = 4
[rollout.vllm]
cache_gib = 0.25
[rollout.rewards.has_a]
grader = { type = "string_check", input = "{{sample.output_text}}", reference = "a", operation = "like" }
"""
STEPS = 8


def servers(out: Path) -> list[psutil.Process]:
    """Processes that write to the log of a run's server: its keeper, vLLM, and what that started."""
    log = (out / "rollouts" / LOG).resolve()
    found = []
    for process in psutil.process_iter():
        try:
            if Path(f"/proc/{process.pid}/fd/1").resolve() == log:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def test_a_training_that_is_killed_leaves_no_server_and_goes_on_with_what_it_has(
    tmp_path: Path, vllm_python: str, model: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    content = RECIPE.format(model=model, steps=STEPS) + ONLINE
    content = content.replace("[data]", 'precision = "float32"\n[data]')  # bfloat16 drifts by hundredths of a nat
    recipe.write_text(content.replace("rows_per_step", "save_every = 1\npatience = false\nrows_per_step"))
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(recipe), "--out", str(out)]
    log = out / "metrics.jsonl"
    with (tmp_path / "said").open("w") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
        while child.poll() is None and (not log.is_file() or len(log.read_bytes().splitlines()) < STEPS // 2):
            time.sleep(0.01)
        assert child.poll() is None, (tmp_path / "said").read_text()
        assert servers(out)
        child.send_signal(signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 60
    while servers(out) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not servers(out)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "rollouts").glob("*.jsonl")}
    assert len(kept) >= STEPS // 2
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not servers(out)
    for name, written in kept.items():
        assert (out / "rollouts" / name).stat().st_mtime_ns == written
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["sampler_drift"] < 1e-3 and abs(line["sampler_ratio"] - 1) < 1e-3 for line in lines)
    header = json.loads((out / "rollouts" / f"rollout-{STEPS:06d}.jsonl").read_text().splitlines()[0])
    assert 0 < header["sampler_drift"] < 1e-3
