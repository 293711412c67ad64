"""A real vLLM server on the CPU: what a job made of the default model is loaded into it, and says what it learned."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from tests.jobs_service import MODEL, rows, running, wait_for

from luthier.assemble import open_trained
from luthier.examples import Message
from luthier.jobs.gateway import Served
from luthier.jobs.vllm import Address

KEY = "the-key-of-this-vllm"
ASKED = "Say 0-3."
pytestmark = pytest.mark.vllm


@contextmanager
def _vllm(python: str, model: Path, port: int, log: Path) -> Iterator[None]:
    """vLLM with the model, once it answers."""
    more = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--enforce-eager", "--enable-lora", "--max-lora-rank", "64", "--max-model-len", "1024"]
    command += ["--dtype", "float32", "--max-num-seqs", "8", "--api-key", KEY, "--host", "127.0.0.1"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **more}, start_new_session=True
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                continue
        yield
    finally:
        process.terminate()
        process.wait(60)


def _first(client: openai.OpenAI, model: str) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens of the answer."""
    messages: Any = [{"role": "user", "content": ASKED}]
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=5
    )
    assert answer.model == model and answer.choices[0].logprobs and answer.choices[0].logprobs.content
    return {one.token: one.logprob for one in answer.choices[0].logprobs.content[0].top_logprobs}


def test_a_job_is_served_by_vllm_as_by_us_and_again_after_a_restart(
    vllm_python: str, tmp_path: Path, real_model_folder: Path
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = {str(real_model_folder): Address(f"http://127.0.0.1:{port}/v1", KEY)}
    with running(tmp_path / "service", real_model_folder, closed=False, vllm=address) as service:
        client = service.client()
        with _vllm(vllm_python, real_model_folder, port, tmp_path / "vllm.log"):
            file = client.files.create(file=("rows.jsonl", rows(24)), purpose="fine-tune")
            parameters: Any = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 2.0}
            method: Any = {"type": "supervised", "supervised": {"hyperparameters": parameters}}
            job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=method)
            job = wait_for(client, job.id, seconds=900)
            assert job.status == "succeeded", job.error
            name = job.fine_tuned_model
            row = service.service.jobs.model(service.service.tenants.project("default"), name)
            assert row is not None
            served = Served.of(row)
            assert served.folder is not None
            time.sleep(5)
            cards = httpx2.get(
                f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {KEY}"}, trust_env=False
            ).json()["data"]
            assert served.name in [card["id"] for card in cards]
            tuned, base = _first(client, name), _first(client, MODEL)
        with _vllm(vllm_python, real_model_folder, port, tmp_path / "vllm.log"):
            assert _first(client, name) == pytest.approx(tuned, abs=1e-3)
            trained = open_trained(tmp_path / "service/jobs" / served.folder)  # its files go with its name
            client.models.delete(name)
    ids = trained.template.prompt_ids([Message("user", ASKED)])
    with torch.no_grad():
        # vLLM computes in float32 here
        expected = torch.log_softmax(trained.loaded.model.float()(torch.tensor([ids])).logits[0, -1], -1)
    for token, logprob in tuned.items():
        (place,) = trained.loaded.tokenizer.encode(token, add_special_tokens=False)
        assert logprob == pytest.approx(float(expected[place]), abs=0.05)
    assert max(abs(tuned.get(token, -20.0) - logprob) for token, logprob in base.items()) > 0.3
