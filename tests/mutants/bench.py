"""A small, complete and correct run, built in a second, into which the mutants seed their failures.

Two kinds of tokenizer: `chatml`, whose BOS opens every turn and whose padding is its end of turn (like the default
model's), and `bos`, which puts a BOS before every text (like Gemma's).
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.adapters.base import standing_in
from luthier.adapters.full import Full
from luthier.adapters.lora import LoRA
from luthier.data.templates import Template
from luthier.examples import Conversation, Document, Example, Message, Preference, ToolCall, Where
from luthier.models.catalog import ModelFiles
from luthier.models.forest import TokenScores
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models, Objective
from luthier.objectives.dpo import DPO
from luthier.objectives.sft import SFT
from luthier.preflight.base import RowSettings, Subject, run_gates
from luthier.preflight.tensors_moved import checksums

Kind = Literal["chatml", "bos"]
BUILTIN = Path(__file__).resolve().parents[2] / "src" / "luthier" / "data" / "templates_builtin" / "chatml_tools.jinja"
OWN_TEMPLATE = (  # knows no tools, like the default model's own
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "Read the address and answer with its parts as JSON.",
    "What is the weather in Paris? It is 21 degrees and sunny.",
    "Translate the word into French. Explain why the sky is blue.",
    "system user assistant tool name arguments description parameters type object string",
)
SYSTEM = Message("system", "Read the address and answer with its parts as JSON.")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city"}}},
    },
}


@cache
def tokenizer(kind: Kind) -> Any:
    """A byte-level tokenizer of about 500 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<bos>"] if kind == "bos" else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    bos = "<bos>" if kind == "bos" else "<|im_start|>"
    if kind == "bos":
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


@cache
def template(
    kind: Kind = "chatml", source: str | None = None, max_tokens: int | None = None, loss_on: Any = "assistant"
) -> Template:
    """Luthier's own ChatML with tools, or `source`; the `bos` kind writes its BOS first."""
    text = BUILTIN.read_text(encoding="utf-8") if source is None else source
    text = "{{- bos_token -}}\n" + text if kind == "bos" else text
    end = tokenizer(kind).convert_tokens_to_ids("<|im_end|>")
    return Template(tokenizer(kind), text, "bench", stop_ids=frozenset({end}), loss_on=loss_on, max_tokens=max_tokens)


def _user(text: str) -> Message:
    return Message("user", text)


def _assistant(text: str, weight: float | None = None) -> Message:
    return Message("assistant", text, weight=weight)


def conversations() -> list[Example]:
    """Twelve rows: with and without system message, several turns, weights, tools, tool calls and their results."""
    rows: list[tuple[tuple[Message, ...], tuple[Any, ...]]] = []
    for index, street in enumerate(("North Main", "Oak", "2nd", "River", "Elm", "Lake")):
        reply = _assistant(f'{{"number": "{index + 10}", "street": "{street}"}}')
        rows.append(((SYSTEM, _user(f"{index + 10} {street} Street"), reply), ()))
    rows.append(((_user("Why is the sky blue?"), _assistant("Because of scattering.")), ()))
    rows.append(((SYSTEM, _user("1 A St"), _assistant('{"a": 1}'), _user("And 2 B St?"), _assistant('{"b": 2}')), ()))
    rows.append(
        ((_user("hi"), _assistant("A bad reply.", 0.0), _user("Again, please."), _assistant("A good one.", 0.5)), ())
    )
    call = Message("assistant", "", (ToolCall("get_weather", {"city": "Paris", "days": 3}, "call_1"),))
    result = Message("tool", '{"degrees": 21}', tool_call_id="call_1", name="get_weather")
    told = _assistant("It is 21 degrees in Paris.")
    rows.append(((_user("How is the weather in Paris?"), call), (WEATHER,)))
    rows.append(((_user("Weather in Paris, please"), call, result, told), (WEATHER,)))
    rows.append(((_user("Say hello in French"), _assistant("Bonjour, caf\u00e9!\n  - Zo\u00eb")), ()))
    return [Conversation(m, tools, Where("train.jsonl", i + 1), f"row-{i + 1}") for i, (m, tools) in enumerate(rows)]


def held_out() -> list[Example]:
    """Two rows whose prompts are not in `conversations`."""
    asked = ("99 Sunset Boulevard", "77 Sunrise Avenue")
    made = [(SYSTEM, _user(text), _assistant('{"c": 3}')) for text in asked]
    return [Conversation(m, (), Where("test.jsonl", i + 1), f"test-{i + 1}") for i, m in enumerate(made)]


def preferences() -> list[Preference]:
    """Six pairs of replies."""
    pairs = []
    for index, word in enumerate(("red", "green", "blue", "white", "black", "brown")):
        prompt = (SYSTEM, _user(f"What is {word} in French?"))
        good, bad = (_assistant(f"{word} is a color"),), (_assistant(f"I will not say what {word} is"),)
        pairs.append(Preference(prompt, good, bad, (), Where("pairs.jsonl", index + 1), f"pair-{index + 1}"))
    return pairs


def documents() -> list[Example]:
    """Three raw texts."""
    return [Document(text, Where("text.jsonl", i + 1), f"text-{i + 1}") for i, text in enumerate(TEXTS[:3])]


def tiny_model(kind: Kind = "chatml") -> Any:
    """A random Llama of two layers, float32; equal on every call."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        # untrained attention is nearly uniform; larger weights make positions and neighbors matter as in a real model
        initializer_range=0.08,
        pad_token_id=tokenizer(kind).pad_token_id,
        bos_token_id=tokenizer(kind).bos_token_id,
        eos_token_id=tokenizer(kind).eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


class Reference:
    """The policy while something is open: with its adapter off, or with other numbers in it."""

    def __init__(self, scorer: Any, before: Callable[[], AbstractContextManager[None]]) -> None:
        self.scorer, self.before = scorer, before

    def token_logprobs(self, batch: Any) -> torch.Tensor:
        with self.before():
            logprobs: torch.Tensor = self.scorer.token_logprobs(batch)
            return logprobs

    def token_scores(self, batch: Any) -> TokenScores:
        with self.before():
            scores: TokenScores = self.scorer.token_scores(batch)
            return scores

    def logits(self, batch: Any) -> torch.Tensor:
        with self.before():
            logits: torch.Tensor = self.scorer.logits(batch)
            return logits

    def at(self, temperature: float) -> "Reference":
        return Reference(self.scorer.at(temperature), self.before)


@cache
def earlier_run() -> "tempfile.TemporaryDirectory[str]":
    """What a LoRA of an earlier run was saved as, every number of it moved."""
    place = tempfile.TemporaryDirectory(prefix="luthier-mutants-")
    injected = LoRA(rank=4).inject(tiny_model(), 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    injected.save(Path(place.name), "bench")
    return place


@dataclass
class Bench:
    """A clean run; a mutant changes one of its parts before `subject` puts them together."""

    kind: Kind = "chatml"
    examples: list[Example] = field(default_factory=conversations)
    held_out: dict[str, Sequence[Example]] = field(default_factory=lambda: {"test": held_out()})
    objective: Objective = field(default_factory=SFT)
    settings: RowSettings = field(default_factory=lambda: RowSettings(max_tokens=512))
    adapter: Any = field(default_factory=lambda: LoRA(rank=4))
    source: str | None = None
    continues: bool = False
    """Whether the adapter starts as `earlier_run` left it."""

    def subject(self) -> Subject:
        """The subject of the row gates."""
        limit, loss_on = self.settings.max_tokens, self.settings.loss_on
        return Subject(
            examples=self.examples,
            template=template(self.kind, self.source, limit, loss_on),
            untruncated=template(self.kind, self.source, None, loss_on),
            tokenizer=tokenizer(self.kind),
            objective=self.objective,
            settings=self.settings,
            held_out=self.held_out,
        )

    def with_units(self, max_rows: int) -> Subject:
        """The subject of the gates over all rows; those over a sample look at `max_rows`."""
        subject = replace(self.subject(), max_rows=max_rows)
        subject.units = {
            name: [self.objective.rows(example, subject.template) for example in examples]
            for name, examples in subject.splits.items()
        }
        return subject

    def with_model(self, change: Callable[[Any], None] = lambda model: None) -> Subject:
        """The subject of the model gates; `change` edits the model before the adapter is put in."""
        subject = self.subject()
        model = tiny_model(self.kind)
        change(model)
        files = ModelFiles(name="bench", folder=Path("bench"), origin="made by a test")
        loaded = LoadedModel(
            model=model,
            tokenizer=subject.tokenizer,
            stop_ids=subject.template.stop_ids,
            max_tokens=2048,
            files=files,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        injected = self.adapter.inject(model, 0)
        policy = Scorer(model)
        reference: Any = Reference(policy, injected.disabled) if isinstance(self.adapter, LoRA) else None
        start = None
        if self.continues:
            start = Path(earlier_run().name)
            injected.start_at(start)
            left = {name: p.detach().clone() for name, p in injected.trainable.items()}
            reference = Reference(policy, partial(standing_in, injected.trainable, left))
        models = Models(policy, reference or Scorer(tiny_model(self.kind))) if self.objective.uses_reference else None
        targets = self.adapter.targets if isinstance(self.adapter, LoRA) else ()
        given = models or Models(policy)
        return replace(subject, loaded=loaded, injected=injected, models=given, targets=targets, start=start)


def dpo_bench(**parts: Any) -> Bench:
    """A clean run on preference pairs."""
    held: dict[str, Sequence[Example]] = {"test": []}
    return Bench(examples=list(preferences()), held_out=held, objective=DPO(), **parts)


def full_bench() -> Bench:
    """A clean run that trains every parameter."""
    return Bench(adapter=Full())


def train_three_steps(
    subject: Subject, parameters: Sequence[torch.nn.Parameter] | None = None, learning_rate: float = 1e-3
) -> Subject:
    """The subject after three AdamW steps, with the checksums from before; `parameters` replace the adapter's own."""
    loaded, injected, cast = subject.need_model(), subject.need_injected(), subject.need_models()
    before = checksums(loaded.model, injected)
    chosen = list(injected.trainable.values()) if parameters is None else parameters
    optimizer = torch.optim.AdamW(chosen, lr=learning_rate)
    for _ in range(3):
        batch = subject.batches.build(subject.trained_rows[:4])
        loss = subject.objective.loss(cast, batch).total / subject.objective.weight(batch)
        loss.backward()
        optimizer.step()
        loaded.model.zero_grad(set_to_none=True)
    return replace(subject, checksums=before)


def failed_gates(subject: Subject, stage: Any) -> list[str]:
    """Names of the gates that refuse."""
    return [result.gate for result in run_gates(subject, stage) if not result.passed]
