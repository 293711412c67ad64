"""What the job service answers with beside its own engine's chats: encoders and decisions, by the real client."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from tests.jobs_service import MODEL, Running, environment, running
from tests.small_encoders import write_encoder
from tests.small_gguf import CHATML, write_gguf

from luthier.errors import ServeError
from luthier.jobs.service import Options, open_service
from luthier.jobs.settings import ServedModels, ServiceSettings
from luthier.jobs.vllm import Address
from luthier.models.catalog import resolve
from luthier.rag.embedder import Embedder

VECTORS = "text-embedding-3-small"
QUESTIONS: list[Any] = [{"type": "predicate", "instructions": "It is short.", "name": "short"}]
TEXTS = ["the bridge", "a river", "city 12"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, encoder: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    file = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny one.gguf", template=CHATML)
    more: Any = {"embedders": {VECTORS: str(encoder)}, "ggufs": {"small": file}}
    more["vllm"] = {str(tiny_model_folder): Address("http://127.0.0.1:9/v1")}  # nobody listens there
    with running(folder, tiny_model_folder, at_once=0, **more) as found:
        yield found


def test_an_encoder_answers_under_the_name_that_clients_have_for_it(client: openai.OpenAI, encoder: Path) -> None:
    answer = client.embeddings.create(model=VECTORS, input=TEXTS)
    expected = Embedder(resolve(str(encoder)), torch.device("cpu")).embed(TEXTS).vectors_ND
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-6)
    assert answer.model == VECTORS and VECTORS in [model.id for model in client.models.list()]
    assert client.models.retrieve(VECTORS).id == VECTORS
    with pytest.raises(openai.BadRequestError, match="not trained to give shorter vectors"):
        client.embeddings.create(model=VECTORS, input="a", dimensions=8)


def test_decisions_are_answered_by_our_own_engine_wherever_chats_go(client: openai.OpenAI) -> None:
    answer = client.decisions.create(model=MODEL, input="Hello", questions=QUESTIONS)
    (one,) = answer.answers
    assert answer.model == MODEL and one.type == "predicate" and 0 < one.probability < 1
    with pytest.raises(openai.InternalServerError, match="vLLM does not answer") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    assert caught.value.status_code == 503


def test_a_gguf_file_chats_through_llama_cpp(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "seed": 4}
    whole = client.chat.completions.create(**asked, logprobs=True)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole.model == "small" and {chunk.model for chunk in chunks} == {"small"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and whole.choices[0].logprobs is not None
    assert client.completions.create(model="small", prompt="hi", max_tokens=3, n=2).choices[1].index == 1
    with pytest.raises(openai.BadRequestError, match="llama"):
        client.chat.completions.create(**asked, presence_penalty=1)
    assert "small" in [model.id for model in client.models.list()]


def test_each_kind_of_model_answers_its_own_routes(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.chat.completions.create(model=VECTORS, messages=[{"role": "user", "content": "a"}]),
        lambda: client.decisions.create(model=VECTORS, input="a", questions=QUESTIONS),
        lambda: client.embeddings.create(model=MODEL, input="a"),
        lambda: client.decisions.create(model="small", input="a", questions=QUESTIONS),
    ):
        with pytest.raises(openai.BadRequestError, match="which is not what /v1/") as caught:
            call()
        assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="cannot be fine-tuned"):
        client.fine_tuning.jobs.create(model=VECTORS, training_file="file-none")


def test_the_process_of_the_service_loads_no_torch() -> None:
    names = ("luthier.cli.commands.up", "luthier.jobs.service", "luthier.jobs.http.app", "luthier.serve.server")
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    options = Options(tmp_path / "s", bases=("a",), aliases={"x": "a"}, embedders={"x": "b"})
    with pytest.raises(ServeError, match="same name"), open_service(options):
        pass


@pytest.mark.parametrize("file", ["no.gguf", "notes.txt"])
def test_a_gguf_file_that_is_none_is_told(file: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    settings = ServiceSettings(models=ServedModels(ggufs={"a": file}))
    with pytest.raises(ServeError, match=rf"models\.ggufs\.a = .*{file}: there is no such GGUF file"):
        settings.options(tmp_path / "s", tmp_path, {})
