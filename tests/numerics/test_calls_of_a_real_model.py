"""The default model and Qwen's at a high temperature: each call that was to be held to its tool is one that fits it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from tests.serving import running

from luthier.data.formats.base import read_examples
from luthier.data.template_sources import BUILTIN
from luthier.data.templates import Template, build_template
from luthier.examples import Conversation
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.serve.models import SharedBase

pytestmark = [pytest.mark.slow, pytest.mark.numerics]
MODELS = {"smollm2-135m-instruct": "chatml_tools", "qwen2.5-coder-0.5b-instruct": "model"}


@pytest.fixture(scope="module", params=MODELS)
def client(request: pytest.FixtureRequest, real_model_folder: Path) -> Iterator[OpenAI]:
    loaded = load(resolve(request.param), verify=False)
    served = SharedBase(loaded).base(build_template(loaded, MODELS[request.param]))
    with running([served]) as url, OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as found:
        yield found


@pytest.mark.parametrize("name", MODELS)
def test_all_calls_of_real_rows_are_read_back(name: str, real_model_folder: Path, shared_data: Path) -> None:
    """With the model's own tokenizer, and the template as it is shipped; a row that is not read back is refused."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(name).folder, local_files_only=True)
    own = MODELS[name] == "model"
    source = tokenizer.chat_template if own else (BUILTIN / f"{MODELS[name]}.jinja").read_text(encoding="utf-8")
    template, calls = Template(tokenizer, source, name), 0
    for file in ("train", "test"):
        for row in read_examples(shared_data / "toolcalls" / f"{file}.jsonl"):
            assert isinstance(row, Conversation) and row.completion is not None and len(template.rows(row)) == 1
            calls += len(row.completion.tool_calls)
    assert calls == 1052


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_all_calls_parse_and_fit(client: OpenAI, shared_data: Path, temperature: float) -> None:
    rows = [json.loads(line) for line in (shared_data / "toolcalls" / "test.jsonl").read_text("utf-8").splitlines()]
    made = 0
    for row in [row for row in rows if len(row["tools"]) > 1][:4]:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        asked: Any = {"messages": row["messages"][:1], "tools": row["tools"], "tool_choice": "required"}
        answer = client.chat.completions.create(
            model="base", **asked, temperature=temperature, seed=1, n=2, max_tokens=200
        )
        for choice in answer.choices:
            calls: list[Any] = choice.message.tool_calls or []
            # a model may call the same again until it is cut off; the calls before that are whole
            assert choice.finish_reason == "length" or (calls and choice.finish_reason == "tool_calls")
            for call in calls:
                jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
            made += len(calls)
    assert made >= 4
