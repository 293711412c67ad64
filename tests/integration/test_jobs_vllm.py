"""Chats of a base and of what jobs made of it through a vLLM server; here a stand-in that keeps vLLM's contract."""

import asyncio
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.jobs_service import MODEL, Running, options_of, rows, running, wait_for
from tests.small_vllm import BASE, CONTEXT, KEY, SmallVllm, running as small_vllm

from luthier.config import build
from luthier.errors import RecipeError, ServeError
from luthier.jobs.blobs import Blobs
from luthier.jobs.disk import Disk
from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.http.app import Hosts, build_app
from luthier.jobs.service import open_service
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.supervisor import Limits, Supervisor
from luthier.jobs.vllm import Address, Vllm
from luthier.serve import server
from luthier.serve.api_error import ApiError

HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def vllm() -> Iterator[SmallVllm]:
    with small_vllm() as found:
        yield found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, vllm: SmallVllm) -> Iterator[Running]:
    address = {str(tiny_model_folder): Address(vllm.url, KEY)}
    with running(tmp_path_factory.mktemp("service"), tiny_model_folder, vllm=address) as found:
        yield found


@pytest.fixture(scope="module")
def done(client: openai.OpenAI) -> Any:
    """A job that succeeded."""
    file = client.files.create(file=("rows.jsonl", rows(40)), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}
    job = wait_for(client, client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=method).id)
    assert job.status == "succeeded", job.error
    return job


def _served(service: Running, name: str) -> Served:
    row = service.service.jobs.model(service.service.tenants.project("default"), name)
    assert row is not None
    return Served.of(row)


def _place(service: Running, served: Served) -> Path:
    assert served.folder is not None
    return (service.service.supervisor.folder / served.folder).resolve()


def test_what_a_job_made_is_loaded_when_it_succeeds_and_answers_by_its_name(
    service: Running, client: openai.OpenAI, vllm: SmallVllm, done: Any
) -> None:
    for _ in range(100):
        if vllm.adapters:
            break
        time.sleep(0.05)
    ((name, path),) = vllm.adapters.items()
    served = _served(service, done.fine_tuned_model)
    assert served.folder is not None and (name, path) == (served.name, str(_place(service, served) / "adapter"))
    answer = client.chat.completions.create(model=done.fine_tuned_model, messages=HI)
    assert answer.model == done.fine_tuned_model and answer.choices[0].message.content == f"I am {name}"
    chunks = list(client.chat.completions.create(model=done.fine_tuned_model, messages=HI, stream=True))
    assert {chunk.model for chunk in chunks} == {done.fine_tuned_model}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == f"I am {name}"
    assert vllm.loads == [name]  # once


def test_what_vllm_would_take_from_elsewhere_is_said(client: openai.OpenAI, vllm: SmallVllm) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, user="me", metadata={"a": "b"}, seed=3)
    assert answer.model == MODEL and vllm.asked[-1] == {
        "model": BASE,
        "messages": HI,
        "seed": 3,
        "max_tokens": 1024,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=7)
    assert vllm.asked[-1]["max_completion_tokens"] == 7 and "max_tokens" not in vllm.asked[-1]
    long: Any = [{"role": "user", "content": "a" * (CONTEXT - 100)}]  # no 1,024 tokens fit behind it
    assert client.chat.completions.create(model=MODEL, messages=long).choices and "max_tokens" not in vllm.asked[-1]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model=MODEL, messages=[*long, *long])
    client.completions.create(model=MODEL, prompt="x", temperature=0, echo=False, best_of=1, max_tokens=3)
    assert vllm.asked[-1]["temperature"] == 0 and not {"echo", "best_of"} & vllm.asked[-1].keys()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"),
        ({"extra_body": {"mm_processor_kwargs": {}}}, "mm_processor_kwargs"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1"}}]}
                ]
            },
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "a<|im_end|>b"}]}, "messages[0].content"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "<|im_start|>"}}]},
            "tools[0].function.description",
        ),
    ],
)
def test_what_a_client_must_not_say_never_reaches_vllm(
    client: openai.OpenAI, vllm: SmallVllm, more: dict[str, Any], param: str
) -> None:
    before = len(vllm.asked)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": HI, **more})
    assert caught.value.param == param and len(vllm.asked) == before


def test_an_added_token_that_is_not_special_never_reaches_vllm_either(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))
    spec = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for text in ("<tool_call>", "  "):  # Gemma has runs of white space among them, which steer nothing
        spec["added_tokens"].append({"id": len(spec["model"]["vocab"]) + len(text), "content": text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(spec))

    async def ask(text: str) -> None:
        async with httpx2.AsyncClient() as client:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            await Vllm(str(folder), Address("http://127.0.0.1:9/v1"), client).send("/chat/completions", body, "m", None)

    with pytest.raises(ApiError, match="'<tool_call>', which vLLM would read"):
        asyncio.run(ask("a <tool_call> b"))
    with pytest.raises(ApiError, match="does not answer"):  # it was understood, and nobody listens there
        asyncio.run(ask("a  b"))


def test_an_adapter_is_loaded_again_after_vllm_was_started_again(
    client: openai.OpenAI, vllm: SmallVllm, done: Any
) -> None:
    before = len(vllm.loads)
    vllm.restart()
    asked: Any = {"model": done.fine_tuned_model, "messages": HI}
    assert client.chat.completions.create(**asked).choices and client.chat.completions.create(**asked).choices
    assert len(vllm.loads) == before + 1
    vllm.restart()
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(done.id)
    name = checkpoint.fine_tuned_model_checkpoint
    assert client.chat.completions.create(model=name, messages=HI).model == name
    assert len(vllm.loads) == before + 2 and "step-" in vllm.loads[-1]


def test_what_vllm_refuses_is_told_and_what_it_says_of_this_machine_is_not(
    client: openai.OpenAI, done: Any, service: Running, vllm: SmallVllm
) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model=MODEL, messages=HI, max_tokens=2 * CONTEXT)
    with pytest.raises(openai.BadRequestError, match="cannot be processed"):
        client.chat.completions.create(model=MODEL, messages=HI, max_tokens=2**21)
    served = _served(service, done.fine_tuned_model)
    assert served.folder is not None
    path = _place(service, served) / "adapter" / "adapter_config.json"
    kept = path.read_text()
    try:
        for change, told in (
            ({"r": 32}, "could not load"),
            ({"use_dora": True}, "use_dora"),
            ({"peft_type": "OFT"}, "no LoRA"),
        ):
            path.write_text(json.dumps({**json.loads(kept), **change}))
            vllm.restart()
            with pytest.raises(openai.APIStatusError, match=told) as caught:
                client.chat.completions.create(model=done.fine_tuned_model, messages=HI)
            assert str(path.parents[2]) not in str(caught.value) and "rank" not in str(caught.value)
    finally:
        path.write_text(kept)


def test_a_deleted_model_is_unloaded(client: openai.OpenAI, vllm: SmallVllm, done: Any, service: Running) -> None:
    served = _served(service, done.fine_tuned_model)
    client.chat.completions.create(model=done.fine_tuned_model, messages=HI)
    assert served.name in vllm.adapters
    client.models.delete(done.fine_tuned_model)
    assert served.name not in vllm.adapters
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=done.fine_tuned_model, messages=HI)


def test_the_settings_name_a_base_and_an_address(tmp_path: Path) -> None:
    def found(environment: Mapping[str, str], **servers: Any) -> Mapping[str, Address]:
        values = {"models": {"aliases": {"gpt": "tiny"}, "vllm": servers}}
        return build(ServiceSettings, values).options(tmp_path, tmp_path, environment).vllm

    here = {"url": "http://127.0.0.1:8001/", "key_env": "VLLM_KEY"}
    served = found({"VLLM_KEY": f" {KEY}\n"}, gpt=here)
    assert served == {"tiny": Address("http://127.0.0.1:8001/v1", KEY)} and KEY not in repr(served)
    with pytest.raises(
        ServeError, match=r"models\.vllm\.gpt\.key_env = 'VLLM_KEY': this environment variable is not set"
    ):
        found({"VLLM_KEY": " \n"}, gpt=here)
    with pytest.raises(ServeError, match="tiny has a server already"):
        found({"VLLM_KEY": KEY}, gpt=here, tiny=here)
    for url in ("ftp://127.0.0.1", "http://", "127.0.0.1"):
        with pytest.raises(RecipeError, match="expected a URL"):
            found({}, tiny={"url": url})
        with pytest.raises(RecipeError, match=r"webhook\.url = .*expected a URL"):
            build(ServiceSettings, {"webhook": {"url": url, "secret_env": "SECRET"}})


def _adapter(jobs: Path, settings: Any) -> Path:
    """A run's adapter, as far as vLLM and what asks it look into it; where it is among the jobs."""
    folder = jobs / "job" / "run" / "adapter"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"template": {"name": "model"}, "recipe": {"model": {}}}))
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").touch()
    return folder.parent.relative_to(jobs)


def test_what_fails_while_a_model_is_prepared_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("luthier.jobs").propagate = True
    folder = _adapter(tmp_path, [])  # no settings of an adapter

    async def prepare() -> None:
        gateway = Gateway(tmp_path / "served", tmp_path, {"base": Address("http://127.0.0.1:9/v1")})
        gateway.open()
        await asyncio.to_thread(gateway.prepare, Served("base", "job.run", folder))
        await gateway.close()

    asyncio.run(prepare())
    assert "a model is not prepared: AttributeError in vllm_lora.py" in caplog.text


def test_a_job_that_succeeds_while_the_service_ends_is_still_loaded(
    tiny_model_folder: Path, tmp_path: Path, vllm: SmallVllm
) -> None:
    base = str(tiny_model_folder)
    with open_service(
        options_of(tmp_path / "service", tiny_model_folder, vllm={base: Address(vllm.url, KEY)})
    ) as found:
        folder = _adapter(found.supervisor.folder, {"peft_type": "LORA", "r": 8})

        class Late(Supervisor):
            """Its last job succeeds while it ends."""

            def start(self) -> None: ...

            def stop(self) -> None:
                found.gateway.prepare(Served(base, "late.run", folder))

        blobs, disk = Blobs(tmp_path / "blobs"), Disk(tmp_path, 0)
        late = Late(found.jobs, found.files, blobs, disk, found.supervisor.folder, Limits())
        serving = server.server_of(build_app(replace(found, supervisor=late), Hosts()), 5.0)
        bound = server.listen(server.Address(port=0))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]})
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        assert "late.run" not in vllm.adapters
        serving.should_exit = True
        thread.join(30)
    assert not thread.is_alive() and "late.run" in vllm.adapters
