"""`luthier capture` before `luthier serve`: what is kept of 1,000 consented chats, and what the proxy costs each.

    python -m benchmarks.capture [--requests 1000] [--model MODEL]

Both are real processes on this machine; the model is a tiny one with random weights unless another is named, and a JSON
schema holds it to answers with personal data in them. Every request is sent twice, once to the server and once through
the proxy, in turns, so that both see the same machine; half of the pairs are streamed. Every tenth is sent once more
without consent. Exits with 1 if a row is missing, a planted value or unconsented text is found, `luthier check` refuses
the file, or the median costs more than 5 ms.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

MOST_MS = 5.0
YES = {"X-Luthier-Consent": "yes"}
UNCONSENTED = "zebra-finch"
"""Stands in what nobody agreed to."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def planted(number: int) -> dict[str, str]:
    """Personal data of a request: of each kind one value that no other request has, where a kind has so many."""
    card = f"4{number:014d}"
    digits = [int(c) for c in card]
    total = sum(digits[-2::-2]) + sum(d * 2 - 9 if d > 4 else d * 2 for d in digits[-1::-2])
    account = f"{370400440532 * 10**6 + number:018d}"
    check = 98 - int(account + "131400") % 97
    return {
        "email": f"person{number}@firma{number % 7}.de",
        "phone": f"+49 30 {901_000 + number}",
        "card": f"{card}{-total % 10}",
        "iban": f"DE{check:02d}{account}",
        "ip": f"203.0.{number % 256}.{number // 256}",
        "secret": f"ghp_16C7e42F292c6912E7710c838347Ae17{number:04d}",
    }


def tiny_model(folder: Path) -> Path:
    """A Llama of 150,000 random weights with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([str(planted(number)) for number in range(50)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def started(log: Path, *verb: str) -> Iterator[str]:
    """A verb of the command line that listens; its base URL."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "luthier.cli.main", *verb], stdout=out, stderr=out)
    try:
        found = None
        while found is None:
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
            found = re.search(r" at (http://\S+) ", log.read_text())
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def ask(client: openai.OpenAI, model: str, number: int, is_stream: bool, **more: Any) -> tuple[str, float]:
    """One chat with its own personal data in the question and in the answer, and the seconds that it took."""
    values = planted(number)
    question = f"Number {number}: " + ", ".join(values.values())
    schema = {"enum": [values["email"]]}
    given: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "max_tokens": 200,
        "temperature": 0,
        **more,
    }
    start = time.perf_counter()
    if is_stream:
        chunks = client.chat.completions.create(**given, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        text = client.chat.completions.create(**given).choices[0].message.content or ""
    return text, time.perf_counter() - start


def measure(direct: str, proxied: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds of every request, to the server and through the proxy."""
    plain = openai.OpenAI(base_url=direct, api_key="none")
    through = openai.OpenAI(base_url=proxied, api_key="none", default_headers=YES)
    unasked = openai.OpenAI(base_url=proxied, api_key="none")
    model = plain.models.list().data[0].id
    for client in (plain, through):  # connections and caches, which nobody is measured by
        client.models.list()
        ask(client, model, 0, False, max_tokens=1)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        order = [(plain, seconds[0]), (through, seconds[1])]
        for client, taken in order if number % 2 else order[::-1]:
            text, took = ask(client, model, number, number % 4 > 1)
            if planted(number)["email"] not in text:
                raise SystemExit(f"request {number}: not passed through as it came: {text!r}")
            taken.append(took)
        if number % 10 == 0:
            asked = [{"role": "user", "content": f"{UNCONSENTED} {number}"}]
            ask(unasked, model, number, number % 20 == 0, messages=asked)
    return seconds


def main() -> int:
    """Print what was kept and what it cost; 1 if something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--model", help="a model of the catalogue, or a folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, out = args.model or str(tiny_model(place / "tiny")), place / "captured"
        with (
            started(place / "serve.log", "serve", "--base", model, "--port", "0") as direct,
            started(place / "capture.log", "capture", "--to", direct, "--out", str(out), "--port", "0") as proxied,
        ):
            seconds = measure(direct, proxied, args.requests)
        return tell(seconds, out, args.requests)


def tell(seconds: tuple[list[float], list[float]], out: Path, count: int) -> int:
    """Look at the files and at the clock."""
    files = sorted(out.glob("capture-*.jsonl"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    rows = [json.loads(line) for line in text.splitlines()]
    values = [value for number in range(count) for value in planted(number).values()]
    found = sum(value in text for value in values)
    check = subprocess.run(
        [sys.executable, "-m", "luthier.cli.main", "check", *map(str, files[:1])], capture_output=True, text=True
    )
    added = 1000 * statistics.median(b - a for a, b in zip(*seconds, strict=True))
    print(f"{len(rows):,} of {count:,} consented requests recorded, in {len(text):,} bytes")
    print(f"{found} of {len(values):,} planted values found; unconsented texts found: {text.count(UNCONSENTED)}")
    print(f"luthier check: exit code {check.returncode}; personal data: {check.stdout.count('personal_data')} findings")
    print("| | median ms | 95 % below |\n|---|---|---|")
    for name, taken in zip(("direct", "through the proxy"), seconds, strict=True):
        print(
            f"| {name} | {1000 * statistics.median(taken):.2f} | {1000 * statistics.quantiles(taken, n=20)[18]:.2f} |"
        )
    print(f"added at the median of pairs: {added:.2f} ms")
    right = len(rows) == count and not found and UNCONSENTED not in text and check.returncode == 0
    return int(not right or added > MOST_MS)


if __name__ == "__main__":
    sys.exit(main())
