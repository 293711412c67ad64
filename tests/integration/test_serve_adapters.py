"""Many adapters over one base, behind a real server and the real `openai` client."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from tests.serving import running

from luthier import registry
from luthier.adapters.base import Adapter
from luthier.assemble import open_trained, save_artifact
from luthier.config import build
from luthier.data.templates import build_template
from luthier.errors import LuthierError, ModelError, ServeError
from luthier.examples import Message
from luthier.models.generate import generate
from luthier.models.load import LoadedModel
from luthier.models.new_tokens import with_new_tokens
from luthier.recipe import ADAPTERS, Recipe
from luthier.serve.backend import Backend
from luthier.serve.limits import Access
from luthier.serving import Runs, parse_adapters

KEY = "an-admin-key-of-the-tests"
ASKED = "Where is 12 Main Street?"
FAMILIES: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4},
    "wide": {"type": "lora", "rank": 8, "targets": ["q_proj", "down_proj"]},
    "dora": {"type": "dora", "rank": 4},
    "vera": {"type": "vera", "rank": 8},
    "ia3": {"type": "ia3"},
    "bitfit": {"type": "bitfit"},
    "oft": {"type": "oft", "block_size": 8},
    "bottleneck": {"type": "bottleneck", "size": 8},
    "prompt": {"type": "prompt", "tokens": 5},
    "p_tuning": {"type": "p_tuning", "tokens": 5},
    "prefix": {"type": "prefix", "tokens": 7},
    "peft": {"type": "peft", "method": "loha", "settings": {"r": 4}},
}


def write_run(folder: Path, loaded: LoadedModel, settings: dict[str, Any], seed: int = 0) -> Path:
    """A run whose adapter is random and strong enough to change every answer; the model is edited."""
    recipe = build(
        Recipe,
        {
            "model": {"name": str(loaded.files.folder), "precision": "float32"},
            "data": {"train": "rows.jsonl"},
            "adapter": settings,
        },
    )
    kind = registry.load_class(ADAPTERS, settings["type"], Adapter)  # type: ignore[type-abstract]
    injected = build(kind, {key: value for key, value in settings.items() if key != "type"}).inject(loaded.model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_artifact(folder / "adapter", recipe, loaded, injected, build_template(loaded, "chatml_tools"))
    return folder


def answer_alone(run: Path) -> str:
    """What the run answers by itself, greedily."""
    trained = open_trained(run)
    prompt = trained.template.prompt_ids((Message("user", ASKED),))
    (found,) = generate(trained.loaded, [prompt], max_new_tokens=12, stop_ids=trained.template.stop_ids)
    return str(trained.template.parse_reply(found.ids).content)


def ask(url: str, model: str) -> str:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=12
        )
    return str(answer.choices[0].message.content)


@pytest.fixture(scope="module")
def folders(make_tiny: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {name: write_run(place / name, make_tiny(), settings) for name, settings in FAMILIES.items()}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, str]:
    return {name: answer_alone(folder) for name, folder in folders.items()}


@pytest.fixture
def place(make_tiny: Callable[..., LoadedModel], tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        write_run(tmp_path / name, make_tiny(), {"type": "lora", "rank": 4}, seed)
    return tmp_path


class Admin:
    """Calls of the admin's routes."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{self.url}/adapters{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def models(self) -> list[str]:
        with OpenAI(base_url=self.url, api_key=KEY) as client:
            return [model.id for model in client.models.list()]


@pytest.fixture
def admin(place: Path) -> Iterator[Admin]:
    runs = Runs({"one": place / "one"}, place)
    with running([], Access(admin_key=KEY), backend=Backend(runs.models(), registry=runs)) as url:
        yield Admin(url)


def test_adapters_of_every_family_answer_together_as_they_do_alone(
    folders: dict[str, Path], alone: dict[str, str]
) -> None:
    runs = Runs(folders)
    models = runs.models()
    apart = [served.name for served in models if served.shared is None]
    assert apart == ["peft"], "all others share one batch"
    assert len(set(alone.values())) == len(alone), "every adapter answers something of its own"
    names = list(folders) * 2
    with running(models) as url, ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(lambda name: ask(url, name), names))
        base = ask(url, "base")
    assert dict(zip(names, found, strict=True)) == alone
    assert base not in alone.values()


def test_virtual_tokens_take_room_in_the_context_and_not_in_the_usage(folders: dict[str, Path]) -> None:
    runs = Runs({"prefix": folders["prefix"], "lora": folders["lora"]})
    with running(runs.models()) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        sizes = {}
        for name in ("prefix", "lora", "base"):
            done = client.completions.create(model=name, prompt=[5] * 40, max_tokens=1)
            assert done.usage is not None
            sizes[name] = done.usage.prompt_tokens
        assert set(sizes.values()) == {40}
        client.completions.create(model="lora", prompt=[5] * 1020, max_tokens=4)
        with pytest.raises(openai.BadRequestError, match="1017 tokens"):
            client.completions.create(model="prefix", prompt=[5] * 1020, max_tokens=4)


def test_adapters_come_and_go_while_the_server_runs(admin: Admin, place: Path) -> None:
    assert admin.models() == ["one", "base"]
    status, listed = admin.call("GET")
    assert status == 200
    assert [(a["id"], a["served"]) for a in listed["data"]] == [("one", True), ("two", False)]
    status, card = admin.call("POST", body={"name": "two"})
    assert (status, card["id"]) == (200, "two")
    assert ask(admin.url, "two") == answer_alone(place / "two")
    assert ask(admin.url, "one") == answer_alone(place / "one")
    assert admin.call("POST", body={"name": "two"})[0] == 409
    assert admin.call("DELETE", "/one") == (200, {"id": "one", "object": "model", "deleted": True})
    assert admin.models() == ["base", "two"]
    with pytest.raises(openai.NotFoundError):
        ask(admin.url, "one")
    assert admin.call("DELETE", "/one")[0] == 404
    assert ask(admin.url, "two") == answer_alone(place / "two")


def test_a_name_means_the_run_that_is_there_when_it_is_added(
    admin: Admin, place: Path, make_tiny: Callable[..., LoadedModel]
) -> None:
    admin.call("POST", body={"name": "two"})
    before = ask(admin.url, "two")
    admin.call("DELETE", "/two")
    shutil.rmtree(place / "two")
    assert admin.call("POST", body={"name": "two"})[0] == 404
    write_run(place / "two", make_tiny(), {"type": "ia3"}, seed=9)
    assert admin.call("POST", body={"name": "two"})[0] == 200
    assert ask(admin.url, "two") == answer_alone(place / "two") != before


@pytest.mark.parametrize(
    "name", ["../two", "..", "/etc", "two/../two", "two/", "base", "nothing", "two\x00", "", "x" * 60]
)
def test_only_registered_names_are_taken(admin: Admin, name: str) -> None:
    status, answer = admin.call("POST", body={"name": name})
    assert status in (400, 404), answer
    assert admin.call("POST", body={"name": "two", "path": "/tmp"})[0] == 400
    assert admin.call("POST", body={"name": 7})[0] == 400
    assert admin.models() == ["one", "base"]


def test_a_run_that_cannot_be_served_is_refused_and_the_others_go_on(
    admin: Admin, place: Path, make_tiny: Callable[..., LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    write_run(place / "whole", make_tiny(), {"type": "full"})
    write_run(place / "torn", make_tiny(), {"type": "lora"})
    (place / "torn/adapter/adapter_model.safetensors").write_bytes(b"torn")
    for name, why in (("whole", "trained all weights"), ("torn", "was changed")):
        status, answer = admin.call("POST", body={"name": name})
        assert (status, answer["error"]["code"]) == (422, "unusable")
        assert str(place) not in json.dumps(answer) and why in caplog.text
    assert admin.models() == ["one", "base"]
    assert ask(admin.url, "one") == answer_alone(place / "one")


def test_what_was_asked_before_a_removal_is_answered(admin: Admin) -> None:
    with OpenAI(base_url=admin.url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="one",
            messages=[{"role": "user", "content": ASKED}],
            max_tokens=300,
            stream=True,
            logit_bias={"2": -100},
        )
        next(iter(stream))
        assert admin.call("DELETE", "/one")[0] == 200
        assert admin.models() == ["base"]
        assert list(stream)[-1].choices[0].finish_reason == "length"
    assert admin.call("POST", body={"name": "one"})[0] == 200
    assert admin.models() == ["base", "one"]


def test_adding_and_removing_under_load_changes_no_answer(admin: Admin, place: Path) -> None:
    wanted, over, wrong = answer_alone(place / "one"), threading.Event(), []

    def load() -> int:
        count = 0
        while not over.is_set():
            if (found := ask(admin.url, "one")) != wanted:
                wrong.append(found)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        for _ in range(5):
            assert admin.call("POST", body={"name": "two"})[0] == 200
            assert ask(admin.url, "two")
            assert admin.call("DELETE", "/two")[0] == 200
        over.set()
        assert all(done.result() for done in loads)
    assert not wrong


def test_runs_over_other_bases_are_refused(place: Path, make_tiny: Callable[..., LoadedModel]) -> None:
    record = place / "two/adapter/run.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "model": {**values["model"], "fingerprint": "other"}}))
    with pytest.raises(ModelError, match="is not the model that this run was trained on"):
        Runs({"one": place / "one", "two": place / "two"}).models()
    record.write_text(json.dumps({**values, "model": {**values["model"], "precision": "bfloat16"}}))
    with pytest.raises(ModelError, match=r"two .*trained over its base in bfloat16.*held in float32"):
        Runs({"one": place / "one", "two": place / "two"}).models()
    whole = write_run(place / "whole", make_tiny(), {"type": "full"})
    with pytest.raises(ServeError, match="serve it alone"):
        Runs({"one": place / "one", "whole": whole})
    (served,) = Runs({"whole": whole}).models()
    assert served.name == "whole"
    assert Runs({"whole": whole}).names() == []


@pytest.mark.parametrize(
    ("run", "given", "why"),
    [
        (None, [], "nothing to serve"),
        (None, ["dates"], "expected NAME=PATH"),
        (None, ["=runs/x"], "begins with a letter"),
        (None, ["a b=runs/x"], "begins with a letter"),
        (None, ["base=runs/x"], "hide the base"),
        (Path("runs/base"), [], "hide the base"),
        (Path("runs/x"), ["x=runs/y"], "same name: x"),
    ],
)
def test_names_on_the_command_line_are_checked(run: Path | None, given: list[str], why: str) -> None:
    with pytest.raises(LuthierError, match=why):
        parse_adapters(run, given)


def test_new_tokens_are_served_alone_and_other_adapters_beside_them_are_refused(
    place: Path, make_tiny: Callable[..., LoadedModel]
) -> None:
    loaded = with_new_tokens(make_tiny(), ["<street>"])
    run = write_run(place / "marked", loaded, {"type": "lora", "rank": 4, "new_tokens": ["<street>"]}, seed=7)
    runs = Runs({"marked": run})
    with running(runs.models()) as url:
        assert ask(url, "marked") == answer_alone(run)
    for first, second in (("marked", "one"), ("one", "marked")):
        with pytest.raises(ModelError, match="other new tokens"):
            Runs({first: place / first, second: place / second}).models()


def test_names_keep_their_order_and_the_run_comes_first() -> None:
    found = parse_adapters(Path("runs/demo"), ["b=runs/2", "a=runs/1"])
    assert list(found) == ["demo", "b", "a"] and found["b"] == Path("runs/2")
