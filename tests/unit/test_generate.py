"""Generation: batched, alone, streamed, with and without a shared prefix: always the same answer."""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.errors import ModelError
from luthier.models import generate as generation
from luthier.models.decode import Slots
from luthier.models.generate import generate, sample, score_choices_batch, stream
from luthier.models.load import LoadedModel

NEVER: frozenset[int] = frozenset()
Make = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def double(make_tiny: Make) -> LoadedModel:
    """Float64: rounding cannot hide a wrong mask."""
    return make_tiny(double=True)


def ragged(count: int, seed: int = 0, shared: int = 0, vocabulary: int = 400) -> list[list[int]]:
    """Prompts of 1 to 40 own tokens after `shared` common ones."""
    draw = random.Random(seed)
    prefix = [draw.randrange(3, vocabulary) for _ in range(shared)]
    return [prefix + [draw.randrange(3, vocabulary) for _ in range(draw.randint(1, 40))] for _ in range(count)]


def score_choices(loaded: LoadedModel, prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> list[float]:
    return score_choices_batch(loaded, [(prompt, choices)])[0]


def by_transformers(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ids: list[int] = out[0, len(prompt) :].tolist()
    return ids


@pytest.mark.parametrize("shared", [0, 30])
def test_batched_equals_single_equals_transformers(tiny_loaded: LoadedModel, shared: int) -> None:
    prompts = ragged(12, shared=shared)
    together = generate(tiny_loaded, prompts, max_new_tokens=12, stop_ids=NEVER)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate(tiny_loaded, [prompt], max_new_tokens=12, stop_ids=NEVER)
        assert list(answer.ids) == list(alone.ids) == by_transformers(tiny_loaded.model, prompt, 12)
        assert answer.logprob_sum == pytest.approx(alone.logprob_sum, abs=1e-4)
        assert answer.prompt_tokens == len(prompt)
        assert not answer.finished


@pytest.mark.parametrize("shared", [0, 30])
def test_logprobs_are_those_of_the_scorer(double: LoadedModel, shared: int) -> None:
    prompts = ragged(7, seed=3, shared=shared)
    for prompt, answer in zip(prompts, generate(double, prompts, max_new_tokens=9, stop_ids=NEVER), strict=True):
        assert answer.logprob_sum == pytest.approx(score_choices(double, prompt, [answer.ids])[0], abs=1e-9)


def test_shared_prefix_changes_nothing(double: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ragged(9, seed=1, shared=25)
    shared = generate(double, prompts, max_new_tokens=10, stop_ids=NEVER)
    monkeypatch.setattr(generation, "MIN_SHARED", 10_000)
    plain = generate(double, prompts, max_new_tokens=10, stop_ids=NEVER)
    assert [a.ids for a in shared] == [a.ids for a in plain]
    for a, b in zip(shared, plain, strict=True):
        assert a.logprob_sum == pytest.approx(b.logprob_sum, abs=1e-9)


def test_rows_that_wait_for_room_get_the_same_answers(double: LoadedModel) -> None:
    """A small budget forces rows to leave, holes to be filled and others to come in."""
    prompts = ragged(20, seed=2, shared=20)
    limits = [random.Random(i).randint(1, 14) for i in range(20)]
    wide = generate(double, prompts, max_new_tokens=limits, stop_ids=NEVER)
    seen: list[tuple[int, int]] = []
    narrow = generate(
        double, prompts, max_new_tokens=limits, stop_ids=NEVER, batch_tokens=150, on_progress=lambda *a: seen.append(a)
    )
    assert [a.ids for a in wide] == [a.ids for a in narrow]
    assert [len(a.ids) for a in narrow] == limits
    assert seen[-1] == (20, 20) and len(seen) > 5


def test_slots_as_wide_as_the_widest_row_stay_within_the_room() -> None:
    """One long prompt beside many short ones: all slots are as wide as the widest, so few rows may stand beside it."""
    needs = [1000, *[100] * 300]
    waiting, writing, room = deque(range(301)), list[int](), 4000
    sizes = []
    while waiting or writing:
        writing += [needs[i] for i in generation._admit(waiting, writing, needs, room)]
        assert writing, "something is always admitted, even where nothing fits"
        assert len(writing) * max(writing) <= room
        sizes.append(len(writing))
        del writing[:2]
    assert sizes[0] == 4 and max(sizes) == 40
    assert generation._admit(deque([0, 1]), [], needs, 10) == [0]


def test_a_wide_row_that_is_gone_leaves_no_wide_slots(double: LoadedModel) -> None:
    slots = Slots(double.model, double.device)
    slots.prefill([list(range(3, 203))], [2])
    slots.drop([1])
    slots.prefill([[3, 4, 5]], [1])
    assert {layer.keys.shape[0] * layer.keys.shape[2] for layer in slots._layers.values()} == {2 * 256}
    slots.drop([0])
    alone = Slots(double.model, double.device).prefill([[3, 4, 5, 6]], [1])
    assert torch.equal(slots.prefill([[3, 4, 5, 6]], [9])[3], alone[0])
    assert {layer.keys.shape[0] * layer.keys.shape[2] for layer in slots._layers.values()} == {10 * 64}
    one = Slots(double.model, double.device)
    one.prefill([[3, 4, 5]], [1])
    token = torch.tensor([7])
    torch.testing.assert_close(slots.step(token.repeat(10))[0], one.step(token)[0], rtol=0, atol=1e-12)


def test_equal_prompts_are_computed_once(double: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [ragged(1, seed=5, shared=20)[0]] * 4 + ragged(2, seed=6)
    computed: list[int] = []
    whole = Slots.prefill

    def count(self: Slots, own: Sequence[Sequence[int]], copies: Sequence[int]) -> torch.Tensor:
        computed.append(len(own))
        return whole(self, own, copies)

    monkeypatch.setattr(Slots, "prefill", count)
    answers = generate(double, prompts, max_new_tokens=6, stop_ids=NEVER)
    assert sum(computed) == 3
    assert len({a.ids for a in answers[:4]}) == 1
    assert answers[0].ids == generate(double, prompts[:1], max_new_tokens=6, stop_ids=NEVER)[0].ids


def test_equal_prompts_with_limits_of_their_own_keep_their_places(double: LoadedModel) -> None:
    """Longest first, another prompt stands between the two equal ones."""
    one, other = [5, 9, 33, 20, 7, 8], [100, 50, 33, 20, 7, 9]
    prompts, limits = [one, other, one, other], [10, 9, 8, 7]
    together = generate(double, prompts, max_new_tokens=limits, stop_ids=NEVER)
    for prompt, limit, answer in zip(prompts, limits, together, strict=True):
        assert answer.ids == generate(double, [prompt], max_new_tokens=limit, stop_ids=NEVER)[0].ids


def test_stop_tokens_end_an_answer(tiny_loaded: LoadedModel) -> None:
    prompts = ragged(10, seed=4)
    free = generate(tiny_loaded, prompts, max_new_tokens=15, stop_ids=NEVER)
    stop = free[0].ids[5]
    stopped = generate(tiny_loaded, prompts, max_new_tokens=15, stop_ids=frozenset({stop}))
    for before, after in zip(free, stopped, strict=True):
        expected = before.ids[: before.ids.index(stop)] if stop in before.ids else before.ids
        assert after.ids == expected
        assert after.finished == (stop in before.ids)
        assert after.completion_tokens == len(after.ids) + after.finished
    assert stopped[0].finished


def test_stream_yields_what_generate_returns(tiny_loaded: LoadedModel) -> None:
    for seed, prompt in enumerate(ragged(4, seed=8)):
        for options in ({}, {"temperature": 1.3, "top_p": 0.9, "seed": seed}):
            free = generate(tiny_loaded, [prompt], max_new_tokens=10, stop_ids=NEVER, **options)[0].ids  # type: ignore[arg-type]
            assert tuple(stream(tiny_loaded, prompt, max_new_tokens=10, stop_ids=NEVER, **options)) == free  # type: ignore[arg-type]
            stops = frozenset({free[4]})
            cut = tuple(stream(tiny_loaded, prompt, max_new_tokens=10, stop_ids=stops, **options))  # type: ignore[arg-type]
            assert cut == free[: free.index(free[4])]


def test_seeds_decide_samples_and_places_do_not(double: LoadedModel) -> None:
    prompts = ragged(6, seed=9, shared=20)
    first = generate(double, prompts, max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=1)
    assert first == generate(double, prompts, max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=1)
    other = generate(double, prompts, max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=2)
    assert [a.ids for a in first] != [a.ids for a in other]
    group = generate(double, [prompts[0]] * 5, max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=1)
    assert len({a.ids for a in group}) > 1  # rollouts of one prompt differ
    own = generate(double, prompts, max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=list(range(6)))
    turned = generate(
        double, prompts[::-1], max_new_tokens=8, stop_ids=NEVER, temperature=1.0, seed=list(range(5, -1, -1))
    )
    assert [a.ids for a in own] == [a.ids for a in turned[::-1]]


def test_samples_follow_the_distribution() -> None:
    probs = torch.tensor([0.05, 0.5, 0.15, 0.3])
    draws = 4000
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = torch.bincount(sample(probs.expand(draws, -1), uniform), minlength=4) / draws
    assert torch.allclose(counts, probs, atol=1e-3)
    nucleus = torch.bincount(sample(probs.expand(draws, -1), uniform, top_p=0.6), minlength=4) / draws
    assert torch.allclose(nucleus, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=1e-3)
    only = sample(probs.expand(draws, -1), uniform, top_p=1e-9)
    assert set(only.tolist()) == {1}


@pytest.mark.parametrize("temperature", [1e-6, 1e-320])
def test_a_tiny_temperature_is_greedy(double: LoadedModel, temperature: float) -> None:
    prompts = ragged(5, seed=10)
    greedy = generate(double, prompts, max_new_tokens=8, stop_ids=NEVER)
    cold = generate(double, prompts, max_new_tokens=8, stop_ids=NEVER, temperature=temperature)
    assert [a.ids for a in greedy] == [a.ids for a in cold]


def test_answers_end_where_the_context_does(tiny_loaded: LoadedModel) -> None:
    short = replace(tiny_loaded, max_tokens=20)
    (answer,) = generate(short, [list(range(3, 18))], max_new_tokens=50, stop_ids=NEVER)
    assert len(answer.ids) == 5 and not answer.finished
    with pytest.raises(ModelError, match=r"prompt 1 has 20 tokens; the model takes 1 to 19"):
        generate(short, [[3], list(range(3, 23))], max_new_tokens=5)
    with pytest.raises(ModelError, match="prompt 0 has 0 tokens"):
        generate(short, [[]], max_new_tokens=5)


def test_no_prompts_no_answers(tiny_loaded: LoadedModel) -> None:
    assert generate(tiny_loaded, [], max_new_tokens=5) == []


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"seed": [1, 2]}]
)
def test_impossible_sampling_is_refused(tiny_loaded: LoadedModel, options: Any) -> None:
    with pytest.raises(ValueError, match=r"temperature|seeds"):
        generate(tiny_loaded, [[5, 6]], max_new_tokens=2, **options)


def test_the_model_is_left_as_it_was(make_tiny: Make) -> None:
    loaded = make_tiny()
    model: Any = loaded.model
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    answers = stream(loaded, [5, 6, 7], max_new_tokens=4, stop_ids=NEVER)
    next(answers)  # between two tokens the model is free
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == attention
    generate(loaded, ragged(3), max_new_tokens=3)
    assert {name: module.training for name, module in model.named_modules()} == before
    loss = model(torch.tensor([[5, 6, 7]])).logits.sum()
    loss.backward()  # no inference tensor was left behind


def family(name: str) -> Any:
    from transformers import Gemma3TextConfig, MistralConfig, Qwen3Config

    small: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "gemma3":
        return Gemma3TextConfig(**small, sliding_window=9, layer_types=["sliding_attention"] * 2 + ["full_attention"])
    return MistralConfig(**small, sliding_window=9) if name == "mistral" else Qwen3Config(**small)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("shared", [0, 24])
def test_other_families_and_sliding_windows(name: str, shared: int, tiny_loaded: LoadedModel) -> None:
    """The window of 9 ends inside the shared prefix for some rows and past it for others."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(family(name)).double().eval()
    loaded = replace(tiny_loaded, model=model, max_tokens=256, dtype=torch.float64)
    prompts = ragged(5, seed=7, shared=shared, vocabulary=300)
    answers = generate(loaded, prompts, max_new_tokens=12, stop_ids=NEVER)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.ids) == by_transformers(model, prompt, 12)


def test_choices_are_scored_as_whole_sequences(double: LoadedModel) -> None:
    prompt, choices = [5, 9, 33, 20], [[7], [8, 9, 10], [7, 7], [7]]
    scores = score_choices(double, prompt, choices)
    for choice, score in zip(choices, scores, strict=True):
        with torch.no_grad():
            logits = double.model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(choice))
        assert score == pytest.approx(expected, abs=1e-9)
    assert all(math.isfinite(score) and score < 0 for score in scores)


def test_many_questions_keep_their_order(double: LoadedModel) -> None:
    questions = [(prompt, [[7], [8, 9], [10, 11, 12]]) for prompt in ragged(9, seed=11)]
    seen: list[tuple[int, int]] = []
    scores = score_choices_batch(double, questions, batch_tokens=60, on_progress=lambda *a: seen.append(a))
    assert seen[-1] == (9, 9) and len(seen) > 2
    for (prompt, choices), row in zip(questions, scores, strict=True):
        assert row == pytest.approx(score_choices(double, prompt, choices), abs=1e-9)
    with pytest.raises(ValueError, match="at least one token"):
        score_choices(double, [5], [[7], []])


def test_an_answer_that_says_the_same_over_and_over_is_stopped_if_asked(tiny_loaded: LoadedModel) -> None:
    prompts = ragged(12)
    whole = generate(tiny_loaded, prompts, max_new_tokens=400, stop_ids=NEVER)
    stopped = generate(tiny_loaded, prompts, max_new_tokens=400, stop_ids=NEVER, stop_loops=True)
    looped = [(a, b) for a, b in zip(whole, stopped, strict=True) if a != b]
    assert looped, "an untrained model soon repeats itself"
    for long, short in looped:
        assert long.ids[: len(short.ids)] == short.ids and not short.finished
        assert generation.loops(short.ids)
        assert not any(generation.loops(short.ids[:end]) for end in range(len(short.ids)))


def test_what_counts_as_a_loop() -> None:
    own = list(range(1000, 1040))
    assert generation.loops(own + [1] * 96) and generation.loops(own + [*range(32)] * 3)
    assert not generation.loops(own + [*range(33)] * 3 + [0, 1, 2, 3, 4])  # a longer span, said three times
    assert not generation.loops(own + [1] * 95 + [2]) and not generation.loops([1] * 95)
