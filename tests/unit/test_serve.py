"""The parts of the server, one by one: text out of tokens, sampling, prompts in blocks."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from luthier.adapters.base import Injected
from luthier.adapters.lora import LoRA
from luthier.config import build
from luthier.data.templates import Template, build_template
from luthier.errors import ModelError, ServeError
from luthier.examples import Message
from luthier.models.generate import generate
from luthier.models.load import LoadedModel
from luthier.serve.api_error import ApiError
from luthier.serve.backend import Backend
from luthier.serve.choices import GROUP_TOKENS, Choices
from luthier.serve.lane import Lane
from luthier.serve.limits import Limits
from luthier.serve.models import ServedModel, SharedBase
from luthier.serve.prefill import Prefill, PrefixStore
from luthier.serve.replies import reply_of
from luthier.serve.sampling import Sampler
from luthier.serve.text import Detokenizer, ReplyText, StopText, TokenText
from luthier.serve.work import Completion, Delta, Done, Sampling, Work
from luthier.serve.worker import Worker


@pytest.fixture(scope="module")
def template(tiny_loaded: LoadedModel) -> Template:
    return build_template(tiny_loaded, "chatml_tools")


@pytest.fixture(scope="module")
def reply(tiny_loaded: LoadedModel, template: Template) -> ReplyText:
    return ReplyText(tiny_loaded.tokenizer, template)


@pytest.fixture(scope="module")
def served(tiny_loaded: LoadedModel, template: Template) -> ServedModel:
    return ServedModel("tiny", tiny_loaded, template)


# tokens to text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_incremental_text_equals_the_whole(reply: ReplyText, tiny_loaded: LoadedModel, text: str) -> None:
    ids = tiny_loaded.tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(reply)
    pieces = [detokenizer.add(i) for i in ids]
    assert "".join(pieces) + detokenizer.flush() == tiny_loaded.tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_give_what_the_template_reads(
    reply: ReplyText, template: Template, tiny_loaded: LoadedModel, data: st.DataObject
) -> None:
    # random ids: broken characters and control tokens in the middle of text
    usable = [i for i in range(len(tiny_loaded.tokenizer)) if i not in template.stop_ids]
    ids = data.draw(st.lists(st.sampled_from(usable), max_size=80))
    detokenizer = Detokenizer(reply)
    whole = template.parse_reply(ids).content
    sent = ""
    for i in ids:
        sent += detokenizer.add(i)
        assert whole.startswith(sent)
    assert sent + detokenizer.flush() == whole


def _metaspace_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["a b c one two three four", "the answer is here"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def test_a_sentencepiece_reply_keeps_its_leading_space(tiny_loaded: LoadedModel) -> None:
    tokenizer = _metaspace_tokenizer()
    source = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    template = Template(tokenizer, source, stop_ids=frozenset({tokenizer.eos_token_id}))
    detokenizer = Detokenizer(ReplyText(tokenizer, template))
    ids = tokenizer.encode(" the answer", add_special_tokens=False)
    assert "".join(map(detokenizer.add, ids)) + detokenizer.flush() == template.parse_reply(ids).content


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=30),
)
def test_stop_texts_are_found_across_pieces_and_never_sent(text: str, stops: list[str], cuts: list[int]) -> None:
    first = min((i for s in stops if (i := text.find(s)) >= 0), default=None)
    found, sent, rest = StopText(stops), "", text
    for cut in cuts * 30:
        piece, rest = rest[:cut], rest[cut:]
        sent += found.add(piece)
        if found.found or not rest:
            break
    if not found.found:
        sent += found.flush()
    # another stop text may end earlier than the first one begins to be certain; none may ever be inside what was sent
    assert not any(s in sent for s in stops)
    assert text.startswith(sent)
    assert (first is not None) == found.found
    if first is None:
        assert sent == text


def test_bytes_of_tokens_add_up_to_the_text(tiny_loaded: LoadedModel) -> None:
    names = TokenText(tiny_loaded.tokenizer)
    text = "Grüße 東京 🌍 \x00\n\tok"
    ids = tiny_loaded.tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(names.of(i)[1] for i in ids) == text.encode()
    assert names.of(tiny_loaded.tokenizer.eos_token_id) == ("<|im_end|>", b"<|im_end|>")
    assert names.of(10**6) == ("", b"")
    fallback = TokenText(_metaspace_tokenizer())
    tokenizer = _metaspace_tokenizer()
    assert fallback.of(tokenizer.convert_tokens_to_ids("▁the"))[1] == b" the"


# sampling


def test_greedy_takes_the_likeliest_and_bias_moves_it() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert Sampler(Sampling(temperature=0), 0).choose(logits) == 1
    assert Sampler(Sampling(temperature=0, logit_bias={2: 1.5}), 0).choose(logits) == 2
    assert Sampler(Sampling(temperature=0, logit_bias={1: -100}), 0).choose(logits) == 2
    assert logits.tolist() == [0.0, 2.0, 1.0], "the logits of other rows share this memory"


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler = Sampler(Sampling(temperature=1, seed=0), 0)
    counts = Counter(sampler.choose(logits) for _ in range(4000))
    assert [counts[i] / 4000 for i in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    sharp = Sampler(Sampling(temperature=0.5, seed=0), 0)
    counts = Counter(sharp.choose(logits) for _ in range(4000))
    squares = [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]
    assert [counts[i] / 4000 for i in range(3)] == pytest.approx(squares, abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.0, {0}), (0.49, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, allowed: set[int]) -> None:
    sampler = Sampler(Sampling(temperature=1, seed=1, top_p=top_p), 0)
    assert {sampler.choose(torch.tensor([0.5, 0.3, 0.2]).log()) for _ in range(400)} == allowed


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    assert Sampler(Sampling(temperature=temperature, seed=1), 0).choose(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_a_seed_draws_what_generate_draws(served: ServedModel) -> None:
    seeded: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "seed": 11}
    (expected,) = generate(served.loaded, [[5, 6, 7]], max_new_tokens=12, stop_ids=served.stop_ids, **seeded)
    with _worker(served) as worker:
        inbox = _ask(worker, max_new_tokens=12, sampling=Sampling(**seeded))
        assert inbox.over.wait(5)
    assert inbox.events[-1].ids == expected.ids


def test_penalties_are_openai_s() -> None:
    # after token 0 was taken three times: presence once, frequency three times
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), 0)
    for _ in range(3):
        assert sampler.choose(torch.tensor([9.0, 0.0])) == 0
    assert sampler.choose(torch.tensor([1.24, 0.0])) == 1
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), 0)
    for _ in range(3):
        sampler.choose(torch.tensor([9.0, 0.0]))
    assert sampler.choose(torch.tensor([1.26, 0.0])) == 0


def test_reported_logprobs_are_the_model_s_own(tiny_loaded: LoadedModel) -> None:
    names = TokenText(tiny_loaded.tokenizer)
    logits = torch.randn(459, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(Sampling(temperature=0.1, logit_bias={5: 50}, top_logprobs=2), 0)
    token = sampler.choose(logits)
    score = sampler.score(logits, token, names)
    expected = torch.log_softmax(logits, -1)
    assert token == 5 and score.logprob == pytest.approx(float(expected[5]))
    assert [v for _, _, v in score.top] == pytest.approx(expected.topk(2).values.tolist())


# prompts


def test_blocks_give_the_logits_of_the_whole_prompt(served: ServedModel) -> None:
    ids = tuple(torch.randint(3, 450, (70,), generator=torch.Generator().manual_seed(1)).tolist())
    with torch.inference_mode():
        model: Any = served.loaded.model
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
        for block in (16, 35, 64, 128):
            prefill = Prefill(served, ids, block, PrefixStore(block, 0))
            logits = None
            while logits is None:
                logits = prefill.advance()
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            assert all(keys.shape[1] == 70 for keys, _ in prefill.row())


def test_a_found_prefix_gives_the_same_bits(served: ServedModel) -> None:
    generator = torch.Generator().manual_seed(2)
    system = torch.randint(3, 450, (40,), generator=generator).tolist()
    prompts = [tuple(system + torch.randint(3, 450, (9,), generator=generator).tolist()) for _ in range(3)]

    def compute(ids: tuple[int, ...], store: PrefixStore) -> tuple[torch.Tensor, int]:
        prefill, calls, logits = Prefill(served, ids, 16, store), 0, None
        while logits is None:
            logits = prefill.advance()
            calls += 1
        prefill.row()
        return logits, calls

    with torch.inference_mode():
        store = PrefixStore(16, 1000)
        for i, ids in enumerate(prompts):
            found, calls = compute(ids, store)
            alone, all_calls = compute(ids, PrefixStore(16, 0))
            assert torch.equal(found, alone)
            assert calls == (all_calls if i == 0 else 2), "the 32 shared tokens of two blocks were computed again"


def test_the_prefix_store_is_bounded_and_drops_the_oldest(served: ServedModel) -> None:
    store = PrefixStore(2, 10)
    rows: list[Any] = [[object()] for _ in range(4)]
    store.add(served, (1, 1, 1, 1), rows[0])
    store.add(served, (2, 2, 2, 2), rows[1])
    assert store.find(served, (1, 1, 1, 1)) == (rows[0], 2), "one token must be left to compute"
    store.add(served, (3, 3, 3, 3), rows[2])  # no room: the least recently used goes
    assert store.find(served, (2, 2, 2, 2, 5)) is None
    assert store.find(served, (1, 1, 1, 1, 5)) == (rows[0], 4)
    store.add(served, (1, 1, 1, 1, 7, 7), rows[3])  # replaces the prompt that it contains
    assert store.find(served, (1, 1, 1, 1, 7)) == (rows[3], 4)
    assert store.find(served, (3, 3, 9)) == (rows[2], 2)
    other = replace(served, name="other")
    assert store.find(other, (1, 1, 1, 1, 7)) is None, "another model's keys and values"
    store.add(served, (4,) * 11, rows[0])
    assert store.find(served, (4,) * 12) is None
    store.forget(other)
    assert store.find(served, (3, 3, 9)) == (rows[2], 2)
    store.forget(served)
    assert store.find(served, (3, 3, 9)) is None


# the worker


@contextmanager
def _worker(*models: ServedModel, **limits: Any) -> Iterator[Worker]:
    worker = Worker(models, Limits(**limits), capacity=100)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


class _Inbox:
    """Collects events and waits for the end."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.over = threading.Event()

    def put(self, event: Any) -> None:
        self.events.append(event)
        if not isinstance(event, Delta):
            self.over.set()


def _ask(worker: Worker, **work: Any) -> _Inbox:
    inbox = _Inbox()
    defaults: dict[str, Any] = {
        "model": "tiny",
        "ids": (5, 6, 7),
        "max_new_tokens": 8,
        "sampling": Sampling(temperature=0),
    }
    worker.submit(Work(**defaults | work), inbox.put)
    return inbox


def test_ragged_rows_that_join_and_leave_equal_generate(served: ServedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 450, (n,), generator=generator).tolist() for n in (3, 90, 17, 40, 5, 61, 8)]
    lengths = [12, 3, 30, 7, 21, 9, 16]
    expected = generate(served.loaded, prompts, max_new_tokens=lengths, stop_ids=served.stop_ids)
    with _worker(served, rows=8, block=16) as worker:
        inboxes = []
        for ids, n in zip(prompts, lengths, strict=True):
            inboxes.append(_ask(worker, ids=tuple(ids), max_new_tokens=n))
            time.sleep(0.01)  # they join while others run
        assert all(inbox.over.wait(10) for inbox in inboxes)
    assert [inbox.events[-1].ids for inbox in inboxes] == [e.ids for e in expected]
    assert [inbox.events[-1].generated_tokens for inbox in inboxes] == [e.completion_tokens for e in expected]


class _Faulty(nn.Module):
    """A model that fails when it sees a token."""

    def __init__(self, inner: Any, poison: int, how: str) -> None:
        super().__init__()
        self.inner, self.poison, self.how = inner, poison, how
        self.config = inner.config
        self._supports_attention_backend = True

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = self.inner(input_ids=input_ids, **kwargs)
        if (input_ids == self.poison).any():
            if self.how == "raise":
                raise RuntimeError("out of memory while computing SECRET PROMPT")
            out.logits[...] = float("nan")
        return out


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_request_that_fails_leaves_the_worker_and_the_others_alive(
    served: ServedModel, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    faulty = replace(served.loaded, model=_Faulty(served.loaded.model, poison=400, how=how))
    with _worker(replace(served, loaded=faulty), block=16) as worker:
        running = _ask(worker, ids=(9, 9, 9), max_new_tokens=200)
        bad = _ask(worker, ids=(5, 400, 7))
        assert bad.over.wait(5)
        assert bad.events[-1].error.status == 500
        assert "SECRET" not in bad.events[-1].error.message + caplog.text
        good = _ask(worker)
        assert good.over.wait(5) and isinstance(good.events[-1], Done)
        assert running.over.wait(20) and isinstance(running.events[-1], Done), (
            "a prompt that failed took others with it"
        )
        assert worker.healthy


def test_a_failure_while_joining_leaves_no_slot_without_a_row(
    make_tiny: Callable[..., LoadedModel], template: Template
) -> None:
    torn: list[Lane] = []

    def tear(*_: Any) -> None:
        if not torn:  # as if memory ran out when a row was half put into its slot
            torn.extend(worker._lanes.values())
            torn[0]._slots.lengths.append(3)
            raise MemoryError

    served = ServedModel("tiny", make_tiny(), template)
    served.loaded.model.register_forward_pre_hook(tear)
    with _worker(served) as worker:
        bad = _ask(worker)
        assert bad.over.wait(5) and bad.events[-1].error.status == 500
        good = _ask(worker)
        assert good.over.wait(5) and isinstance(good.events[-1], Done)


class _Unheard(Exception):
    """Not one of the failures that the worker expects."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_fails_what_waits_for_it(make_tiny: Callable[..., LoadedModel], template: Template) -> None:
    def fail(*_: Any) -> None:
        raise _Unheard

    served = ServedModel("tiny", make_tiny(), template)
    served.loaded.model.register_forward_pre_hook(fail)
    with _worker(served) as worker:
        inbox = _ask(worker)
        assert inbox.over.wait(5) and inbox.events[-1].error.status == 503
        with pytest.raises(ApiError):
            _ask(worker)
        assert not worker.healthy


def test_a_failing_step_fails_its_batch_only(served: ServedModel) -> None:
    faulty = replace(served.loaded, model=_Faulty(served.loaded.model, poison=400, how="raise"))
    with _worker(replace(served, name="bad", loaded=faulty), served) as worker:
        other = _ask(worker, max_new_tokens=100)
        bad = _ask(worker, model="bad", sampling=Sampling(temperature=0, logit_bias={400: 100}))
        assert bad.over.wait(5) and bad.events[-1].error.status == 500
        assert other.over.wait(10) and isinstance(other.events[-1], Done)
        fine = _ask(worker, model="bad")
        assert fine.over.wait(5) and isinstance(fine.events[-1], Done)


def test_a_model_of_layers_that_cannot_be_batched_is_refused(
    make_tiny: Callable[..., LoadedModel], template: Template
) -> None:
    loaded = make_tiny()
    model: Any = loaded.model
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match="linear_attention"):
        Worker([ServedModel("x", loaded, template)], Limits(), 1)


def test_closing_a_stream_cancels_the_work(served: ServedModel) -> None:
    backend = Backend([served])
    work = Work("tiny", (5, 6, 7), 900, Sampling(temperature=0, logit_bias=dict.fromkeys(served.stop_ids, -100)))

    async def scenario() -> float:
        stream = backend.stream(work)
        async for _ in stream:
            break
        await stream.aclose()
        # with the long work cancelled, the lane is empty and its memory is given back
        started = time.monotonic()
        assert isinstance(backend._worker, Worker)
        (lane,) = backend._worker._lanes.values()
        while lane.busy and time.monotonic() - started < 5:
            await asyncio.sleep(0.005)
        return time.monotonic() - started

    backend.start()
    try:
        assert asyncio.run(scenario()) < 1
    finally:
        backend.stop()
    assert not backend.healthy


def test_decisions_leave_a_stream_a_token_for_each_of_their_groups(served: ServedModel) -> None:
    backend = Backend([served])
    work = Work("tiny", (5, 6, 7), 9, Sampling(temperature=0, logit_bias=dict.fromkeys(served.stop_ids, -100)))
    prompt = (5,) * (GROUP_TOKENS + 1)
    asked = [Choices((n, *prompt), ((1,), (2,))) for n in range(7)]  # a group each

    async def scenario() -> int:
        scoring = [asyncio.ensure_future(backend.score("tiny", asked)) for _ in range(3)]
        (done,) = await backend.complete(work)
        over = sum(one.done() for one in scoring)
        await asyncio.gather(*scoring)
        return over if done.done.generated_tokens == 9 else -1

    backend.start()
    try:
        assert asyncio.run(scenario()) == 0, "9 tokens came after 7 groups or more"
    finally:
        backend.stop()


def test_stopping_fails_what_is_still_running(served: ServedModel) -> None:
    with _worker(served) as worker:
        inbox = _ask(
            worker,
            max_new_tokens=900,
            sampling=Sampling(temperature=0, logit_bias=dict.fromkeys(served.stop_ids, -100)),
        )
        while not inbox.events:
            time.sleep(0.005)
    assert inbox.over.wait(1) and inbox.events[-1].error.status == 503
    with pytest.raises(ApiError) as caught:
        worker.submit(Work("tiny", (1,), 1), inbox.put)
    assert caught.value.status == 503


def test_the_worker_s_queue_is_bounded(served: ServedModel) -> None:
    worker = Worker([served], Limits(), capacity=2)
    worker.start()
    try:
        long = Work("tiny", (5,), 500, Sampling(temperature=0, logit_bias=dict.fromkeys(served.stop_ids, -100)))
        requests = [worker.submit(long, _Inbox().put) for _ in range(2)]
        with pytest.raises(ApiError) as caught:
            worker.submit(long, _Inbox().put)
        assert caught.value.status == 429
        for request in requests:
            request.cancel()
        deadline = time.monotonic() + 5
        while True:
            try:
                worker.submit(Work("tiny", (5,), 1), _Inbox().put)
                break
            except ApiError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        worker.stop()


def test_a_fingerprint_tells_other_weights(tiny_loaded: LoadedModel, template: Template) -> None:
    shared = SharedBase(tiny_loaded)

    def inject(value: float) -> Callable[[nn.Module], Injected]:
        def put(model: nn.Module) -> Injected:
            injected = build(LoRA, {"rank": 2}).inject(model, 0)
            with torch.no_grad():
                next(iter(injected.trainable.values())).add_(value)
            return injected

        return put

    one, same, other = (shared.adapted("run", template, inject(value)) for value in (0.0, 0.0, 1.0))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert shared.base(template).fingerprint not in (one.fingerprint, other.fingerprint)


def test_two_models_of_one_name_are_refused(served: ServedModel) -> None:
    with pytest.raises(ServeError, match="same name"):
        Backend([served, served])


# replies


def test_reply_of_a_cut_completion_is_text(served: ServedModel) -> None:
    ids = tuple(served.loaded.tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'))
    whole = Completion("text", (), Done(0, "stop", ids, len(ids), False))
    assert reply_of(whole, served, True)[1] == "tool_calls"
    assert reply_of(whole, served, False) == (Message("assistant", "text"), "stop")
    cut = Completion("text", (), Done(0, "stop", ids, len(ids), True))
    assert reply_of(cut, served, True) == (Message("assistant", "text"), "stop")
