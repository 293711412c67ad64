"""What somebody exports from OpenAI, made up and exact: every object is of the type that the `openai` package has."""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openai.types import EvalCreateResponse, FileObject
from openai.types.chat import ChatCompletion, ChatCompletionStoreMessage
from openai.types.evals import RunRetrieveResponse
from openai.types.evals.runs import OutputItemListResponse
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from pydantic import TypeAdapter

TUNED = "ft:gpt-4o-mini-2024-07-18:acme:weather:Bq7Lx2Ta"
JOB = "ftjob-nR3xYbq7Lx2TaWq0"
TRAIN, VALID, RESULT = "file-Train1aB", "file-Valid2cD", "file-Result3eF"
EVAL, RUN = "eval_67abd54d9b0081909a86353f6fb9317a", "evalrun_67abd54d60ec8190832b46859da808f7"
LABELS = {
    "rain": ("wet", "gray", "umbrella"),
    "sun": ("bright", "warm", "glasses"),
    "snow": ("white", "cold", "sledge"),
}
SYSTEM = "Name the weather."
WORDS = [
    first + last
    for first in ("bar", "cor", "fel", "gan", "hol", "mar", "tis", "wen")
    for last in ("den", "lo", "mer", "vik", "za")
]


def chats(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a training file: what a place looks like, and the weather; no two alike."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label, signs = rng.choice(list(LABELS.items()))
        place, other, third = rng.sample(WORDS, 3)
        text = f"{place} {rng.choice(signs)} {other} {third} {seed}{number}"
        rows.append(chat(text, label))
    return rows


def chat(text: str, label: str) -> dict[str, Any]:
    turns = (("system", SYSTEM), ("user", text), ("assistant", label))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def job(**more: Any) -> dict[str, Any]:
    """A fine-tuning job that succeeded."""
    values = {
        "id": JOB,
        "object": "fine_tuning.job",
        "created_at": 1721764800,
        "finished_at": 1721766600,
        "model": "gpt-4o-mini-2024-07-18",
        "fine_tuned_model": TUNED,
        "organization_id": "org-123",
        "result_files": [RESULT],
        "status": "succeeded",
        "training_file": TRAIN,
        "validation_file": VALID,
        "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.8},
        "trained_tokens": 5768,
        "seed": 683058546,
        "error": None,
        "estimated_finish": None,
        "integrations": [],
        "metadata": {"team": "weather"},
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.8}},
        },
        "user_provided_suffix": "weather",
        **more,
    }
    FineTuningJob.model_validate(values)
    return values


def event(step: int) -> dict[str, Any]:
    values = {
        "id": f"ftevent-{step}",
        "object": "fine_tuning.job.event",
        "created_at": 1721764800 + step,
        "level": "info",
        "message": f"Step {step}/60: training loss=0.52",
        "type": "metrics",
        "data": {"step": step, "train_loss": 0.52, "train_mean_token_accuracy": 0.9},
    }
    FineTuningJobEvent.model_validate(values)
    return values


def result_csv(steps: int = 60) -> str:
    """The table of a job, in OpenAI's dialect."""
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for step in range(1, steps + 1):
        loss, held = f"{2.2 / step**0.5:.5f}", f"{2.4 / step**0.45:.5f},0.8" if step % 10 == 0 else ","
        lines.append(f"{step},{loss},0.75,{held}")
    return "\n".join(lines) + "\n"


def file_object(identifier: str, name: str, purpose: str = "fine-tune") -> dict[str, Any]:
    values = {
        "id": identifier,
        "object": "file",
        "bytes": 1234,
        "created_at": 1721764000,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }
    FileObject.model_validate(values)
    return values


def evaluation() -> dict[str, Any]:
    """An Eval with a criterion that runs offline, one in Python, and one that asks a model."""
    values = {
        "id": EVAL,
        "object": "eval",
        "created_at": 1739314509,
        "name": "Weather",
        "metadata": {},
        "data_source_config": {
            "type": "custom",
            "schema": {
                "type": "object",
                "properties": {"item": {"type": "object"}, "sample": {"type": "object"}},
                "required": ["item", "sample"],
            },
        },
        "testing_criteria": [
            {
                "name": "Right label",
                "id": "Right label-2eaf2d8d-d649-4335-8148-9535a7ca73c2",
                "type": "string_check",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.correct }}",
                "operation": "eq",
            },
            {
                "name": "Near",
                "type": "text_similarity",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.correct }}",
                "evaluation_metric": "fuzzy_match",
                "pass_threshold": 0.8,
            },
            {
                "name": "Judge",
                "type": "score_model",
                "model": "gpt-4o",
                "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}],
                "range": [0.0, 1.0],
                "pass_threshold": None,
            },
        ],
    }
    EvalCreateResponse.model_validate(values)
    return values


def run() -> dict[str, Any]:
    values = {
        "id": RUN,
        "object": "eval.run",
        "created_at": 1739314600,
        "eval_id": EVAL,
        "model": TUNED,
        "name": "weather",
        "status": "completed",
        "report_url": "https://platform.openai.com/evaluations/x",
        "error": {"code": "", "message": ""},
        "metadata": {},
        "per_model_usage": [],
        "per_testing_criteria_results": [],
        "result_counts": {"total": 10, "errored": 0, "failed": 2, "passed": 8},
        "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "file-Items"}},
    }
    RunRetrieveResponse.model_validate(values)
    return values


def output_item(number: int, row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """What the old model answered in the run."""
    asked, right = row["messages"][:-1], row["messages"][-1]["content"]
    values = {
        "id": f"outputitem_{number}",
        "object": "eval.run.output_item",
        "created_at": 1739314700 + number,
        "datasource_item_id": number,
        "datasource_item": {"question": asked[-1]["content"], "correct": right},
        "eval_id": EVAL,
        "run_id": RUN,
        "status": "pass" if answer == right else "fail",
        "results": [
            {"name": "Right label", "passed": answer == right, "score": float(answer == right), "sample": None}
        ],
        "sample": {
            "error": {"code": "", "message": ""},
            "finish_reason": "stop",
            "input": asked,
            "max_completion_tokens": 2048,
            "model": TUNED,
            "output": [{"role": "assistant", "content": answer}],
            "seed": 42,
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": {"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 0, "total_tokens": 32},
        },
    }
    OutputItemListResponse.model_validate(values)
    return values


def completion(number: int, answer: str, model: str = TUNED) -> dict[str, Any]:
    """A stored completion, as the list has it: without what was asked."""
    values = {
        "id": f"chatcmpl-AyPN{number}",
        "object": "chat.completion",
        "created": 1738960610 + number,
        "model": model,
        "request_id": f"req_{number}",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": answer,
                    "tool_calls": None,
                    "function_call": None,
                    "refusal": None,
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 31, "completion_tokens": 2, "total_tokens": 33},
        "metadata": {},
        "input_user": None,
        "service_tier": "default",
        "system_fingerprint": "fp_50cad350e4",
        "tools": None,
        "response_format": None,
    }
    ChatCompletion.model_validate(values)
    return values


def stored_messages(number: int, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked, as `/chat/completions/ID/messages` has it."""
    found = [
        {"id": f"chatcmpl-AyPN{number}-{place}", "name": None, "content_parts": None, **message}
        for place, message in enumerate(row["messages"][:-1])
    ]
    for one in found:  # the type knows answers alone; the service gives the questions in the same shape
        TypeAdapter(ChatCompletionStoreMessage).validate_python({**one, "role": "assistant"})
    return found


def page(data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ids = [one["id"] for one in data]
    return {"object": "list", "data": list(data), "first_id": ids[0], "last_id": ids[-1], "has_more": False}


def write_export(folder: Path, train: int = 120, valid: int = 30, unanswered: int = 4) -> Path:
    """The files of one project: most answers are stored completions, ten are of an Eval, and every sixth is wrong."""
    rows, held = chats(train, 1), chats(valid, 2)
    answers = ["fog" if n % 6 == 0 else row["messages"][-1]["content"] for n, row in enumerate(held)]
    known = range(len(held) - unanswered)
    files = [file_object(TRAIN, "weather.jsonl"), file_object(VALID, "weather-valid.jsonl")]
    texts: dict[str, Any] = {
        "job.json": job(),
        "jobs/page.json": page([job(), job(id="ftjob-cancelled", status="cancelled", fine_tuned_model=None)]),
        "jobs/events.json": page([event(step) for step in (1, 2)]),
        "files.json": page([*files, file_object(RESULT, "step_metrics.csv", "fine-tune-results")]),
        "evals/eval.json": evaluation(),
        "evals/runs.json": page([run()]),
        "evals/items.json": page([output_item(n, held[n], answers[n]) for n in known if n % 3 == 0]),
        "stored/list.json": page(
            [completion(n, answers[n]) for n in known if n % 3] + [completion(999, "x", "gpt-4o")]
        ),
    }
    for name, values in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    asked = [(n, held[n]) for n in known if n % 3] + [(999, rows[0])]
    write_lines(folder / "stored/messages.jsonl", [page(stored_messages(n, row)) for n, row in asked])
    write_lines(folder / "weather.jsonl", rows)
    write_lines(folder / "weather-valid.jsonl", held)
    (folder / "step_metrics.csv").write_bytes(base64.encodebytes(result_csv().encode()))
    return folder


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
