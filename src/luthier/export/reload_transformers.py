"""Opens a safetensors or peft export with transformers and peft alone, and answers the gate's questions.

    python -m luthier.export.reload_transformers JOB.json ANSWERS.json

Nothing of Luthier is imported here: what the artifact needs must be in the artifact. Weights are taken as they are in
the files and computed with in float32, so that a difference is the file's, not the processor's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

ROWS = 64
"""Answered together: a step reads all weights once, however many rows there are."""


def main(job_path: str, answers_path: str) -> None:
    """Answer every question of the job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["artifact"], local_files_only=True)
    found = answer_all(job, _model(job), tokenizer, _versions(job))
    Path(answers_path).write_text(json.dumps(found), encoding="utf-8")


def answer_all(job: dict[str, Any], model: Any, tokenizer: Any, program: str) -> dict[str, Any]:
    """Answer every question of a job with a model that was opened from its artifact; `program` says with what."""
    generation = transformers.GenerationConfig.from_pretrained(job["artifact"], local_files_only=True)
    named = generation.eos_token_id
    stops = named if isinstance(named, list) else [] if named is None else [named]
    prompts = [_prompt(tokenizer, question) for question in job["questions"]]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]["prompt_ids"]))
    for start in range(0, len(order), ROWS):
        batch = [prompts[i] for i in order[start : start + ROWS]]
        for prompt, answer in zip(batch, _answer(model, tokenizer, batch, stops, job["max_new_tokens"]), strict=True):
            prompt |= answer
    return {"program": program, "stop_ids": stops, "answers": prompts}


def _model(job: dict[str, Any]) -> Any:
    if "base" not in job:
        return transformers.AutoModelForCausalLM.from_pretrained(job["artifact"], dtype="auto").float().eval()
    import peft

    base = transformers.AutoModelForCausalLM.from_pretrained(job["base"], dtype=job["base_dtype"]).float()
    needed = int(job.get("vocabulary", 0))  # new tokens: whoever opens such an adapter makes room for them first
    if needed > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(needed, mean_resizing=False)
    return peft.PeftModel.from_pretrained(base, job["artifact"]).eval()


def _versions(job: dict[str, Any]) -> str:
    plain = f"transformers {transformers.__version__}"
    if "base" not in job:
        return plain
    import peft

    return f"{plain}, peft {peft.__version__}"


def _prompt(tokenizer: Any, question: dict[str, Any]) -> dict[str, Any]:
    options = {"tools": question["tools"] or None, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(question["messages"], tokenize=False, **options)
    ids = tokenizer.apply_chat_template(question["messages"], tokenize=True, return_dict=False, **options)
    return {"prompt": text, "prompt_ids": list(ids)}


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, batch: list[dict[str, Any]], stops: list[int], limit: int) -> list[Any]:
    """Greedy answers; prompts are padded on the left, which the attention mask hides."""
    width = max(len(prompt["prompt_ids"]) for prompt in batch)
    pads = [width - len(prompt["prompt_ids"]) for prompt in batch]
    ids = torch.tensor([[0] * pad + prompt["prompt_ids"] for pad, prompt in zip(pads, batch, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    settings = transformers.GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=stops or None, pad_token_id=stops[0] if stops else 0
    )
    best: list[torch.Tensor] = []

    def note(_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The log-probability of the first choice, which greedy decoding takes; all logits would fill the memory."""
        best.append(logits.amax(-1) - logits.logsumexp(-1))
        return logits

    processors = transformers.LogitsProcessorList([note])
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=processors)
    written, logprobs = found[:, width:], torch.stack(best, dim=1)
    return [_one(tokenizer, *row, set(stops)) for row in zip(written.tolist(), logprobs.tolist(), strict=True)]


def _one(tokenizer: Any, ids: list[int], logprobs: list[float], stops: set[int]) -> dict[str, Any]:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = len(ids) if end is None else end + 1
    text = tokenizer.decode(ids[:kept], skip_special_tokens=True)
    return {"ids": ids[:kept], "logprobs": logprobs[:kept], "finished": end is not None, "text": text}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
