"""Conversations with an environment: what is said, what is trained on, and how they end."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from luthier.data.templates import Template, build_template
from luthier.engine.rollout import Cast, Grade, Plan, Prompt, Rollouts
from luthier.engine.writing import Turns
from luthier.environments.calculator import Calculating, Calculator, result
from luthier.examples import Message, ToolCall
from luthier.models.generate import Generation
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models
from luthier.objectives.grpo import GRPO


@pytest.mark.parametrize(
    ("expression", "said"),
    [("12 * 7", "84"), ("-(1 + 2) / 4", "-0.75"), ("1e3 - 1", "999"), ("0.1 + 0.2", "0.3")],
)
def test_the_calculator_calculates(expression: str, said: str) -> None:
    assert result(expression) == (said, True)


@pytest.mark.parametrize(
    "expression", ["1 / 0", "2 ** 9", "__import__('os')", "a", "", "(" * 150, "1" * 300, "True", "1e308 * 10"]
)
def test_and_nothing_else(expression: str) -> None:
    said, is_number = result(expression)
    assert not is_number and said.startswith("cannot be calculated")


def test_a_call_is_answered_as_a_tool_and_text_as_the_user() -> None:
    talk = Calculating(call_reward=0.1)
    call = ToolCall("calculate", {"expression": "6 * 7"}, "c1")
    said, earned, over = talk.step(Message("assistant", tool_calls=(call,)))
    assert (said, earned, over) == ((Message("tool", "42", tool_call_id="c1", name="calculate"),), 0.1, False)
    assert talk.step(Message("assistant", "So [calculate: 6 * 7]")) == ((Message("user", "42"),), 0.1, False)
    assert talk.step(Message("assistant", "It is 42.")) == ((), 0.0, True)
    assert talk.step(Message("assistant", "[calculate: x]"))[1:] == (0.0, False)


def test_every_call_of_a_turn_is_answered_in_its_order() -> None:
    calls = (
        ToolCall("calculate", {"expression": "6 * 7"}, "a"),
        ToolCall("search", {"for": "42"}, "b"),
        ToolCall("calculate", {"expression": "1 / 0"}, "c"),
        ToolCall("calculate", {"expression": "1 + 1"}, "d"),
    )
    said, earned, over = Calculating(call_reward=0.25).step(Message("assistant", tool_calls=calls))
    assert [(m.role, m.tool_call_id, m.name) for m in said] == [("tool", c.id, c.name) for c in calls]
    assert [said[0].content, said[3].content] == ["42", "2"] and "only the tool" in said[1].content
    assert (earned, over) == (0.5, False)


class Scripted:
    """A sampler that says what is written down, turn by turn; without an end where a text stops in `...`."""

    def __init__(self, loaded: LoadedModel, template: Template, *turns: str) -> None:
        self.loaded, self.template, self.turns, self.asked = loaded, template, list(turns), list[list[int]]()

    def __call__(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], temperature: float
    ) -> list[Generation]:
        self.asked += [list(prompt) for prompt in prompts]
        text = self.turns.pop(0)
        ids = tuple(self.loaded.tokenizer(text.removesuffix("..."), add_special_tokens=False)["input_ids"])
        end = None if text.endswith("...") else self.template.end_of_turn_id
        count = len(ids) + (end is not None)
        return [Generation(ids, 0.0, end is not None, len(p), (-0.5,) * count, end) for p in prompts]


def talk(loaded: LoadedModel, *turns: str, longest: int = 200) -> tuple[Turns, Scripted, Prompt, Template]:
    template = build_template(loaded, "model")
    asked = (Message("user", "What is 6 times 7?"),)
    prompt = Prompt("p", tuple(template.prompt_ids(asked)), asked, {"answer": "42"})
    sampler = Scripted(loaded, template, *turns)
    return Turns(sampler, template, longest, 3, Calculator(call_reward=0.25).make), sampler, prompt, template


def test_what_is_trained_on_is_what_the_model_said_in_the_conversation_as_it_is_served(
    tiny_loaded: LoadedModel,
) -> None:
    write, sampler, prompt, template = talk(tiny_loaded, "[calculate: 6 * 7]", "It is 42.")
    (written,) = write([prompt], [1], 1.0)
    said = (Message("assistant", "[calculate: 6 * 7]"), Message("user", "42"))
    assert sampler.asked[1] == template.prompt_ids((*prompt.messages, *said))
    assert (written.text, written.turns, written.earned, written.truncated) == ("It is 42.", 2, 0.25, False)
    own = tiny_loaded.tokenizer.decode([t for t, mine in zip(written.ids, written.own, strict=True) if mine])
    other = tiny_loaded.tokenizer.decode([t for t, mine in zip(written.ids, written.own, strict=True) if not mine])
    assert own == "[calculate: 6 * 7]<|im_end|>It is 42.<|im_end|>"
    assert other == "\n<|im_start|>user\n42<|im_end|>\n<|im_start|>assistant\n"
    assert all((logprob == -0.5) == mine for logprob, mine in zip(written.logprobs, written.own, strict=True))


@pytest.mark.parametrize(
    ("turns", "longest", "said"),
    [
        (("[calculate: 6 * 7]", "[calculate: 1]", "[calculate: 2]"), 200, 3),  # no more turns
        (("[calculate: 6 * 7]...",), 200, 1),  # the limit of a reply
        (("[calculate: 6 * 7]",), 24, 1),  # no room for what follows
    ],
)
def test_a_conversation_that_does_not_end_is_cut_off(
    turns: tuple[str, ...], longest: int, said: int, tiny_loaded: LoadedModel
) -> None:
    write, _, prompt, _ = talk(tiny_loaded, *turns, longest=longest)
    (written,) = write([prompt], [1], 1.0)
    assert written.truncated and written.turns == said


def test_two_calls_of_one_turn_are_both_answered_before_the_model_goes_on(tiny_loaded: LoadedModel) -> None:
    template = build_template(tiny_loaded, "chatml_tools")
    asked = (Message("user", "6 times 7, and 1 and 1?"),)
    prompt = Prompt("p", tuple(template.prompt_ids(asked)), asked, {})
    text = "\n".join(
        f'<tool_call>\n{{"name": "calculate", "arguments": {{"expression": "{one}"}}}}\n</tool_call>'
        for one in ("6 * 7", "1 + 1")
    )
    write = Turns(Scripted(tiny_loaded, template, text, "42 and 2"), template, 500, 3, Calculator().make)
    (written,) = write([prompt], [1], 1.0)
    assert (written.text, written.turns, written.truncated) == ("42 and 2", 2, False)
    other = tiny_loaded.tokenizer.decode([t for t, mine in zip(written.ids, written.own, strict=True) if not mine])
    results = "".join(f"<|im_start|>tool calculate\n{one}<|im_end|>\n" for one in ("42", "2"))
    assert other == f"\n{results}<|im_start|>assistant\n"


def test_a_rollout_of_conversations_trains_no_word_of_the_environment(
    make_tiny: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    loaded = make_tiny()
    write, _, prompt, _ = talk(loaded, "[calculate: 6 * 7]", "It is 42.")
    models = Models(Scorer(loaded.model))
    plan = Plan(prompts_per_step=1, group_size=2, max_new_tokens=200, temperature=1.0, seed=0)

    def grade(answers: Sequence[object]) -> list[Grade]:
        return [Grade(float(i), {"n": float(i)}) for i, _ in enumerate(answers)]

    cast = Cast(GRPO(), models, loaded.model, loaded.device, write, grade)
    ((first, _),) = Rollouts(plan, [prompt], [], cast, tmp_path, "key").step(1)
    trained = loaded.tokenizer.decode([t for t, weight in zip(first.ids, first.loss_mask, strict=True) if weight])
    assert trained == "[calculate: 6 * 7]<|im_end|>It is 42.<|im_end|>"
