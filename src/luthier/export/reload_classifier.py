"""Opens an export with a head by transformers and peft alone, and reads the gate's texts.

    python -m luthier.export.reload_classifier JOB.json ANSWERS.json

Nothing of Luthier is imported here: what the artifact needs must be in the artifact. Weights are taken as they are in
the files and computed with in float32, so that a difference is the file's, not the processor's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

ROWS = 32
"""Read together."""
CLASSES: dict[str, Any] = {
    "AutoModelForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "AutoModelForTokenClassification": transformers.AutoModelForTokenClassification,
}


def main(job_path: str, answers_path: str) -> None:
    """Read every text of the job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["artifact"], local_files_only=True)
    model, program = _model(job, tokenizer)
    ids = [_ids(tokenizer, question) for question in job["questions"]]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    values: list[Any] = [None] * len(ids)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        for place, read in zip(places, _read(model, [ids[i] for i in places]), strict=True):
            values[place] = read
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    found = {"program": program, "ids": ids, "values": values, "labels": labels}
    Path(answers_path).write_text(json.dumps(found), encoding="utf-8")


def _model(job: dict[str, Any], tokenizer: Any) -> tuple[Any, str]:
    kind, plain = CLASSES[job["class"]], f"transformers {transformers.__version__}"
    if "base" not in job:
        return kind.from_pretrained(job["artifact"], dtype="auto").float().eval(), plain
    import peft

    settings = job["settings"]
    names = {int(number): label for number, label in settings["id2label"].items()}  # JSON has no numbers for keys
    named = {"id2label": names} if names else {"num_labels": settings["num_labels"]}
    base = kind.from_pretrained(job["base"], dtype=job["base_dtype"], **named).float()
    base.config.pad_token_id = tokenizer.pad_token_id
    model = peft.PeftModel.from_pretrained(base, job["artifact"]).eval()
    return model, f"{plain}, peft {peft.__version__}"


def _ids(tokenizer: Any, question: dict[str, Any]) -> list[int]:
    if "text" in question:
        return list(tokenizer(question["text"])["input_ids"])
    options = {"tools": question["tools"] or None, "add_generation_prompt": True, "return_dict": False}
    return list(tokenizer.apply_chat_template(question["messages"], tokenize=True, **options))


@torch.inference_mode()
def _read(model: Any, batch: list[list[int]]) -> list[Any]:
    """The head's numbers of each text; padded on the right, as transformers does by itself."""
    width, pad = max(map(len, batch)), model.config.pad_token_id
    ids = torch.tensor([[*one, *[pad] * (width - len(one))] for one in batch])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in batch])
    found: list[Any] = model(input_ids=ids, attention_mask=mask).logits.tolist()
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
