"""Supervised fine-tuning with LoRA in one file, to be read from top to bottom. It uses nothing of Luthier.

    python examples/teach_sft.py MODEL_FOLDER ROWS.jsonl

MODEL_FOLDER is a Hugging Face folder of a decoder (`luthier models --path` prints one). ROWS.jsonl has a chat a line:

    {"messages": [{"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."}]}

What the package adds to these ideas: shared prefixes computed once, proofs before the first step that the right tokens
are trained on, exact resume, and a comparison that says whether any of it was worth doing.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

# ---------------------------------------------------------------------------------------------------------------------
# 1. A row is token ids and, beside each id, whether the model is trained to predict it.
#
# The model must learn to answer, not to ask: only what the assistant says is trained on, and the token that ends the
# turn with it. Without that token in the loss the model never learns to stop.
# ---------------------------------------------------------------------------------------------------------------------


def encode(text: str, tokenizer: Any) -> list[int]:
    """Ids of a piece of rendered text; the template has already written every special token that belongs there."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def build_row(messages: list[dict[str, str]], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of a chat: for each assistant turn, first the prompt as it is served, then the reply."""
    ids: list[int] = []
    mask: list[bool] = []
    done = ""
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        reply = message["content"] + tokenizer.eos_token
        if not (prompt + reply).startswith(done) or not whole.startswith(prompt + reply):
            raise SystemExit(
                "this chat template renders a turn otherwise when more turns follow; train on one turn a row"
            )
        # Prompt and reply are encoded apart, as they are when the model is used: encoded together, the last letters of
        # the prompt and the first of the reply could melt into one token that never occurs there in use.
        for text, trained in ((prompt[len(done) :], False), (reply, True)):
            piece = encode(text, tokenizer)
            ids += piece
            mask += [trained] * len(piece)
        done = prompt + reply
    return ids, mask


def show(ids: list[int], mask: list[bool], tokenizer: Any) -> str:
    """The row as text, what is trained on between ⟦ and ⟧. Look at this before every training; most failures show."""
    text, inside = "", False
    for token, trained in zip(ids, mask, strict=True):
        text += ("⟦" if trained and not inside else "⟧" if inside and not trained else "") + tokenizer.decode([token])
        inside = trained
    return text + ("⟧" if inside else "")


# ---------------------------------------------------------------------------------------------------------------------
# 2. LoRA: leave W alone, and learn a small correction B A beside it.
#
#     y = W x + (alpha / rank) B A x
#
# B starts at zero, so the first step starts from exactly the model that was given. A has `rank` rows: that is all the
# freedom there is, about one parameter in a hundred.
# ---------------------------------------------------------------------------------------------------------------------


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        correction: Tensor = F.linear(F.linear(x, self.a), self.scale * self.b)
        base: Tensor = self.base(x)
        return base + correction


def add_lora(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Freeze the model, wrap every linear layer but the output head, and return what is left to train."""
    model.requires_grad_(False)
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    for name, linear in linears:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, LoRA(linear, rank, alpha))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ---------------------------------------------------------------------------------------------------------------------
# 3. The loss: how surprised the model is by each trained token, given all before it.
#
# It is a sum. The number it is divided by is counted over the whole step before the first backward pass; a mean of
# means would give a short row's tokens more say than a long row's.
# ---------------------------------------------------------------------------------------------------------------------


def summed_loss(model: nn.Module, ids: list[int], mask: list[bool]) -> Tensor:
    """Sum over trained tokens of -log p(token | everything before it)."""
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens).logits[0]
    # position i predicts token i + 1: drop the last prediction and the first token
    nats = F.cross_entropy(logits[:-1].float(), tokens[0, 1:], reduction="none")
    summed: Tensor = nats[torch.tensor(mask[1:])].sum()
    return summed


# ---------------------------------------------------------------------------------------------------------------------
# 4. The loop. Everything else that trains a model is this, with more care.
# ---------------------------------------------------------------------------------------------------------------------


def train(
    model: nn.Module, trained: list[nn.Parameter], rows: list[Any], options: argparse.Namespace
) -> Iterator[float]:
    """Take `options.steps` optimizer steps; yields the mean loss per trained token of each."""
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    order: list[int] = []
    for step in range(1, options.steps + 1):
        while len(order) < options.rows_per_step:  # every row once, in a new order, before any row again
            order += torch.randperm(len(rows), generator=generator).tolist()
        batch, order = [rows[i] for i in order[: options.rows_per_step]], order[options.rows_per_step :]
        weight = sum(sum(mask[1:]) for _, mask in batch)
        total = 0.0
        for ids, mask in batch:  # one row at a time: gradients add up, so this equals one large batch
            loss = summed_loss(model, ids, mask) / weight
            loss.backward()
            total += loss.item()
        for group in optimizer.param_groups:  # warm up over the first tenth, then fall in a line to zero
            progress = min(step / (0.1 * options.steps), (options.steps + 1 - step) / options.steps)
            group["lr"] = options.learning_rate * min(1.0, progress)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total


@torch.no_grad()
def reply(model: Any, tokenizer: Any, messages: list[dict[str, str]], max_new_tokens: int = 48) -> str:
    """The model's most likely answer to a chat."""
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([encode(prompt, tokenizer)])
    end = tokenizer.eos_token_id
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def main(argv: list[str] | None = None) -> list[float]:
    """Train, and print an answer before and after. Returns the losses."""
    parser = argparse.ArgumentParser(description="Supervised LoRA fine-tuning in one file.")
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("rows", type=Path, help="JSONL with `messages`")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows-per-step", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    chats = [
        json.loads(line)["messages"] for line in options.rows.read_text(encoding="utf-8").split("\n") if line.strip()
    ]
    rows = [build_row(chat, tokenizer) for chat in chats]
    question = chats[0][:-1]

    print("A row, with what is trained on in brackets:\n" + show(*rows[0], tokenizer) + "\n")
    print(f"Before: {reply(model, tokenizer, question)!r}\n")
    trained = add_lora(model, options.rank, options.alpha)
    share = sum(p.numel() for p in trained) / sum(p.numel() for p in model.parameters())
    print(f"Training {share:.2%} of the parameters on {len(rows)} rows.")
    losses = []
    for step, loss in enumerate(train(model, trained, rows, options), start=1):
        losses.append(loss)
        print(f"step {step:>4}   loss {loss:.4f}")
    print(f"\nAfter:  {reply(model, tokenizer, question)!r}")
    return losses


if __name__ == "__main__":
    main()
