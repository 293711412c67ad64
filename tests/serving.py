"""A tiny model that has learned a few replies by heart, and a real server around it on a loopback port."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tests.listening import listening
from torch import nn

from luthier.adapters.base import Injected
from luthier.adapters.lora import LoRA
from luthier.data.templates import Template, build_template
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel
from luthier.serve.app import build_server
from luthier.serve.backend import Backend
from luthier.serve.limits import Access, HttpLimits, Limits
from luthier.serve.models import ServedModel, SharedBase
from luthier.serve.server import Address, listen

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLS = (ToolCall("weather", {"city": "Århus ☀"}), ToolCall("weather", {"city": "Oslo"}))
UNICODE = "Grüße 東京 🌍👩‍🚀 und ☕!"
COUNT = "one two three four five six seven eight nine ten"

LEARNED = (
    Conversation((Message("user", "Say it in many scripts."), Message("assistant", UNICODE))),
    Conversation((Message("system", "Be brief."), Message("user", "Count."), Message("assistant", COUNT))),
    Conversation(
        (Message("user", "How warm is it?"), Message("assistant", "I look.", tool_calls=CALLS)), tools=(WEATHER,)
    ),
)


@dataclass(frozen=True)
class Tiny:
    """What a run leaves behind."""

    loaded: LoadedModel
    template: Template
    injected: Injected
    base: LoadedModel
    """The same base, untouched."""

    def served(self) -> list[ServedModel]:
        shared = SharedBase(self.base)
        return [shared.adapted("tiny-run", self.template, self.again), shared.base(self.template)]

    def again(self, model: nn.Module) -> Injected:
        """What was learned, in another model."""
        injected = LoRA(rank=64, alpha=64).inject(model, seed=0)
        with torch.no_grad():
            for name, parameter in injected.trainable.items():
                parameter.copy_(self.injected.trainable[name])
        return injected


def learn(make: Callable[[], LoadedModel]) -> Tiny:
    """Train a LoRA on `LEARNED` until greedy decoding repeats it.

    The loss stays above 0.07: the frozen embeddings of the tiny model are short, so no logit can be large.
    """
    loaded = make()
    template = build_template(loaded, "chatml_tools")
    injected = LoRA(rank=64, alpha=64).inject(loaded.model, seed=0)
    rows = [row for conversation in LEARNED for row in template.rows(conversation)]
    optimizer = torch.optim.Adam(list(injected.trainable.values()), lr=4e-3, betas=(0.9, 0.95))
    for _ in range(200):
        worst = 0.0
        for row in rows:
            logits = loaded.model(torch.tensor([row.ids])).logits[0, :-1]
            trained = torch.tensor(row.loss_mask[1:]) > 0
            loss = torch.nn.functional.cross_entropy(logits[trained], torch.tensor(row.ids[1:])[trained])
            loss.backward()
            worst = max(worst, float(loss.detach()))
        if worst < 0.09:
            break
        optimizer.step()
        optimizer.zero_grad()
    optimizer.zero_grad()
    assert worst < 0.09, f"the tiny model has not learned its replies: loss {worst}"
    loaded.model.eval()
    return Tiny(loaded, template, injected, make())


@contextmanager
def running(
    models: list[ServedModel],
    access: Access | None = None,
    http: HttpLimits | None = None,
    limits: Limits | None = None,
    queue: int = 64,
    backend: Backend | None = None,
) -> Iterator[str]:
    """A server in a thread; gives its base URL, and ends it as ctrl-C would."""
    backend = backend or Backend(models, limits, queue)
    bound = listen(Address(port=0))
    with listening(build_server(backend, access or Access(), http), bound) as url:
        yield url
