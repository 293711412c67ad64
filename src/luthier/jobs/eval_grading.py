"""One item of a run: the messages that it becomes, the sample that is graded, and what the testing criteria say."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.errors import EvaluationError
from luthier.evaluation.graders._template import render
from luthier.evaluation.graders.base import Graded, Grader, Host, Limits, NoScore, Sample, build_grader, validate
from luthier.examples import ROLES
from luthier.jobs.eval_items import text_of, tools_of
from luthier.jobs.objects import EvalError, ItemResult, Outcome, SampleMessage, SampleObject

KINDS: Mapping[str, Literal["none", "optional", "required"]] = {
    "label_model": "none",
    "string_check": "none",
    "text_similarity": "required",
    "python": "optional",
    "score_model": "optional",
}
"""OpenAI's testing criteria, which are all graders but `multi`, and whether they have a `pass_threshold`."""
GRADER_ROLES = ("user", "assistant", "system", "developer")
LONGEST_INPUT = 500_000
"""Characters of all messages of an item."""
LIMITS = Limits(seconds=20.0)
"""Of one grade: many items are graded, for many projects."""
MOST_MESSAGES = 2048
SEED = 42
_SAMPLE = re.compile(r"\{\{\s*sample\b")


class NoMessages(Exception):
    """An item that cannot be asked about; its text says why."""


@dataclass(frozen=True)
class Criterion:
    """A grader and where it passes."""

    grader: Grader
    threshold: float
    kind: str

    def passed(self, graded: Graded) -> bool:
        """Whether a grade is enough; one that failed never is."""
        return not graded.errors.any and graded.reward >= self.threshold


def read_criterion(values: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """A testing criterion as it is kept.

    A role that graders do not know is the user's: OpenAI's plain messages may have any.

    Raises:
        EvaluationError: it is wrong in itself, or needs what the host does not have.
    """
    kind = values.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise EvaluationError(f"'type' is {kind!r:.80}; expected one of {', '.join(KINDS)}")
    kept = dict(values)
    if kind in ("label_model", "score_model") and isinstance(kept.get("input"), list):
        kept["input"] = [_known_role(message) for message in kept["input"]]
    threshold = None if KINDS[kind] == "none" else kept.pop("pass_threshold", None)
    if KINDS[kind] == "required" and threshold is None:
        raise EvaluationError("'pass_threshold' is required: from which likeness on an item passes")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise EvaluationError(f"'pass_threshold' is {threshold!r:.80}; expected a number")
    validate(kept, host)
    return kept if threshold is None else {**kept, "pass_threshold": float(threshold)}


def criterion_of(kept: Mapping[str, Any]) -> Criterion:
    """What a testing criterion means that `read_criterion` gave."""
    threshold = kept.get("pass_threshold")
    grader = build_grader({key: value for key, value in kept.items() if key != "pass_threshold"})
    return Criterion(grader, _usual(kept) if threshold is None else float(threshold), str(kept["type"]))


def reads_sample(values: Mapping[str, Any]) -> bool:
    """Whether a criterion's templates name the sample; what a Python source reads cannot be known."""
    return bool(_SAMPLE.search(json.dumps({key: value for key, value in values.items() if key != "source"})))


def grade(
    criteria: Sequence[Criterion], sample: Sample, item: Mapping[str, Any], host: Host
) -> tuple[Outcome, list[ItemResult]]:
    """An item's status, and the result of each criterion."""
    results, is_error = [], False
    for criterion in criteria:
        graded = criterion.grader.grade(sample, item, host)
        is_error = is_error or graded.errors.any
        results.append(_result_body(criterion, graded))
    if is_error:
        return "error", results
    return "pass" if all(result["passed"] for result in results) else "fail", results


def messages_for(asked: Mapping[str, Any], item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages that `input_messages` makes of an item.

    Raises:
        NoMessages: the item lacks what they name, or it is no list of messages.
    """
    try:
        if asked["type"] == "template":
            made = [_filled(message, item) for message in asked["template"]]
            if sum(len(message["content"]) for message in made) > LONGEST_INPUT:
                raise NoMessages(f"the messages have more than {LONGEST_INPUT} characters")
            return made
        text = render("{{" + asked["item_reference"] + "}}", Sample(""), item, LONGEST_INPUT)
    except NoScore as error:
        raise NoMessages(error.problem) from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not 0 < len(values) <= MOST_MESSAGES:
        raise NoMessages(f"{asked['item_reference']} is no list of 1 to {MOST_MESSAGES} messages")
    return [_plain(message, f"{asked['item_reference']}[{n}]") for n, message in enumerate(values)]


def chat_body(source: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The request to a model. The seed is one for all items and is always set, so that a run can be repeated."""
    params = source.get("sampling_params") or {}
    passed = ("max_completion_tokens", "reasoning_effort", "response_format", "temperature", "tools", "top_p")
    chosen = {name: params[name] for name in passed if params.get(name) is not None}
    form = (params.get("text") or {}).get("format")
    if form is not None:  # the Responses API has beside the type what chat completions have one level below
        inner = {key: value for key, value in form.items() if key != "type"}
        chosen["response_format"] = {"type": form.get("type"), **({"json_schema": inner} if inner else {})}
    return {"model": source["model"], "messages": list(messages), "seed": params.get("seed", SEED), **chosen}


def given_sample(given: Mapping[str, Any] | None) -> Sample:
    """The sample that came with an item; an empty one if none did."""
    return Sample("") if given is None else Sample.of(text_of(given) or "", tools_of(given))


def sample_body(
    sample: Sample,
    messages: Sequence[Mapping[str, Any]] = (),
    source: Mapping[str, Any] | None = None,
    answer: Mapping[str, Any] | None = None,
    error: EvalError | None = None,
) -> SampleObject:
    """An output item's `sample`. What there is none of is empty or 0, as OpenAI's types know no null there."""
    params = (source or {}).get("sampling_params") or {}
    usage = usage_of((answer or {}).get("usage") or {})
    output: SampleMessage = {"role": "assistant", "content": sample.output_text}
    if sample.output_tools:
        output["tool_calls"] = [dict(call) for call in sample.output_tools]
    return {
        "error": error or {"code": "", "message": ""},
        "finish_reason": answer["choices"][0].get("finish_reason") or "" if answer else "",
        "input": [{"role": one["role"], "content": one.get("content") or ""} for one in messages],
        "max_completion_tokens": params.get("max_completion_tokens") or 0,
        "model": (source or {}).get("model") or "",
        "output": [] if error else [output],
        "seed": params.get("seed", SEED) if source else 0,
        "temperature": float(params.get("temperature", 1.0)),
        "top_p": float(params.get("top_p", 1.0)),
        "usage": {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "cached_tokens": usage["cached_tokens"],
            "total_tokens": usage["total_tokens"],
        },
    }


def usage_of(values: Mapping[str, Any]) -> dict[str, int]:
    """A chat completion's usage, as `per_model_usage` counts it."""
    prompt, completion = int(values.get("prompt_tokens") or 0), int(values.get("completion_tokens") or 0)
    return {
        "invocation_count": 1,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": int((values.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        "total_tokens": int(values.get("total_tokens") or prompt + completion),
    }


def _known_role(message: Any) -> Any:
    if isinstance(message, dict) and isinstance(message.get("role"), str) and message["role"] not in GRADER_ROLES:
        return {**message, "role": "user"}
    return message


def _usual(values: Mapping[str, Any]) -> float:
    """Where a criterion without a threshold passes: 1 where a grade is 0 or 1, else the middle of its range."""
    if values["type"] in ("string_check", "label_model"):
        return 1.0
    low, high = values.get("range") or (0.0, 1.0)
    return float((low + high) / 2)


def _result_body(criterion: Criterion, graded: Graded) -> ItemResult:
    body: ItemResult = {
        "name": graded.name,
        "type": criterion.kind,
        "passed": criterion.passed(graded),
        "score": graded.reward,
        "sample": None,
    }
    if graded.errors.any:
        body["errors"] = {key: value for key, value in asdict(graded.errors).items() if value}
        body["problem"] = graded.problem[:2000]
    return body


def _filled(message: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    blocks = message["content"] if isinstance(message["content"], list) else [message["content"]]
    texts = [one if isinstance(one, str) else one["text"] for one in blocks]
    return {
        "role": message["role"],
        "content": "\n".join(render(text, Sample(""), item, LONGEST_INPUT) for text in texts),
    }


def _plain(message: Any, at: str) -> dict[str, Any]:
    """A message that stands in an item; its text is no template."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise NoMessages(f"{at} is no message: expected an object with a 'role' of {', '.join(ROLES)} and a 'content'")
    kept = {key: message[key] for key in ("role", "content", "tool_calls", "tool_call_id", "name") if key in message}
    if not isinstance(kept.get("content"), str | None):
        raise NoMessages(f"{at}.content is no text; models here read text")
    return kept
