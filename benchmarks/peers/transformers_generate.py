"""transformers' `generate`, batched: rows of like length together, with the common prefix computed once if asked.

Prints an outcome.
"""

import copy

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.peers._outcome import Once, read_job

job = read_job()
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16).eval()
prompts, limit = job["prompts"], job["new_tokens"]
shared = next(i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)


def answer(batch: list[list[int]], prefix: DynamicCache | None) -> list[list[int]]:
    """New tokens of each prompt of one padded batch."""
    width = max(map(len, batch))
    pads = [width - len(prompt) for prompt in batch]
    # the prefix is in the cache, so padding goes between it and the rest; attention does not see it
    head = shared if prefix is not None else 0
    ids = torch.tensor([p[:head] + [0] * pad + p[head:] for p, pad in zip(batch, pads, strict=True)])
    seen = torch.tensor([[1] * head + [0] * pad + [1] * (len(p) - head) for p, pad in zip(batch, pads, strict=True)])
    past = None
    if prefix is not None:
        past = copy.deepcopy(prefix)
        past.batch_repeat_interleave(len(batch))
    out = model.generate(
        ids,
        attention_mask=seen,
        past_key_values=past,
        max_new_tokens=limit,
        min_new_tokens=limit,
        do_sample=False,
        pad_token_id=0,
    )
    found: list[list[int]] = out[:, width:].tolist()
    return found


with Once(job["started"]) as once, torch.inference_mode():
    prefix = None
    if job["prefix"]:
        prefix = DynamicCache()
        model(torch.tensor([prompts[0][:shared]]), past_key_values=prefix, logits_to_keep=1)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: dict[int, list[int]] = {}
    for first in range(0, len(order), job["batch"]):
        part = order[first : first + job["batch"]]
        found.update(zip(part, answer([prompts[i] for i in part], prefix), strict=True))
same = sum(found[i][0] == token for i, token in enumerate(job["first_tokens"])) / len(prompts)
written = sum(map(len, found.values()))
once.tell(written + sum(map(len, prompts)), written, same)
