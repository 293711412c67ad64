"""Every adapter through a whole training: gates, steps, artifact, and answers by the generator."""

import json
from pathlib import Path

import pytest
import torch
from tests.integration.test_artifact import train, write_recipe
from tests.integration.test_run import RECIPE, write_rows

from luthier import registry
from luthier.assemble import open_trained
from luthier.cli.main import main
from luthier.examples import Message, Row
from luthier.models.forest import build_batch
from luthier.models.generate import generate
from luthier.models.scorer import Scorer
from luthier.recipe import ADAPTERS
from luthier.serve.prefill import Prefill, PrefixStore
from luthier.serving import Runs

pytestmark = pytest.mark.slow  # each trains

MORE = {
    "lora": ("adapter.init=pissa",),
    "lora-eva": ("adapter.init=eva", "adapter.rank=4"),
    "lora-new_tokens": ("adapter.new_tokens=['<tool>', '</tool>']",),
    "lora-loftq": ("adapter.init=loftq", "model.quantize=nf4"),
    "peft": ("adapter={ type = 'peft', method = 'loha', settings = { r = 4 } }", "optimizer.learning_rate=1e-2"),
    "prompt": ("adapter.text='Answer with a number.'",),
    "prefix": ("adapter.reparametrize=true",),
}


@pytest.mark.parametrize("name", sorted({*registry.names(ADAPTERS), *MORE}))
def test_a_run_trains_saves_and_answers(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, tiny_model_folder), tmp_path / "run"
    # nearly all rows in each step, so that losses of steps can be compared; the adapter's own learning rate
    together = ("optimizer={ type = 'adamw' }", "schedule.type=constant", "training.rows_per_step=48")
    given = (
        f"adapter={{ type = '{name.partition('-')[0]}' }}",
        *together,
        *MORE.get(name, ()),
        "model.precision=float32",
    )
    assert train(recipe, out, *given) == 0
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 6 and losses[-1] < losses[0] - 1e-3
    trained = open_trained(out)
    prompts = [trained.loaded.tokenizer(text)["input_ids"] for text in ("What is 1?", "What is 22, then?", "Name it.")]
    answers = generate(trained.loaded, prompts, max_new_tokens=6, stop_ids=frozenset())
    for prompt, answer in zip(prompts, answers, strict=True):
        row = Row((*prompt, *answer.ids), (0.0,) * len(prompt) + (1.0,) * len(answer.ids))
        with torch.no_grad():
            batch = build_batch([row])
            logits = Scorer(trained.loaded.model).logits(batch)
            summed = float(Scorer(trained.loaded.model).token_logprobs(batch).sum())
        assert logits.argmax(-1).tolist() == list(answer.ids)
        assert summed == pytest.approx(answer.logprob_sum, abs=1e-3)
        assert answer.prompt_tokens == len(prompt)


IN_BFLOAT16 = {
    "layer_freeze": ("adapter.type=layer_freeze",),
    "layer_freeze, all kinds": ("adapter={ type = 'layer_freeze', layers = 1, norms = true, embeddings = true }",),
    "full": ("adapter.type=full",),
    "prefix": ("adapter.type=prefix",),
    "ia3": ("adapter.type=ia3",),
}


@pytest.mark.parametrize("name", sorted(IN_BFLOAT16))
def test_a_whole_run_in_bfloat16_is_evaluated_and_served(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Where only some weights are widened, answers are computed as in training."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(model=tiny_model_folder, steps=3))
    write_rows(tmp_path / "rows.jsonl")
    words = [word for a in (*IN_BFLOAT16[name], "model.precision=bfloat16") for word in ("--set", a)]
    assert main(["run", str(recipe), "--out", str(out), *words]) == 0
    records = (out / "records/fine_tuned.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads((out / "forgetting.json").read_text())["measures"] and records
    (served, *_) = Runs({"run": out}).models()
    trained = open_trained(out)
    ids = trained.template.prompt_ids((Message("user", "12 Oak Street"),))
    (wanted,) = generate(trained.loaded, [ids], max_new_tokens=1, stop_ids=frozenset())
    prefill, logits = Prefill(served, tuple(ids), 64, PrefixStore(64, 0)), None
    with torch.inference_mode():
        while logits is None:
            logits = prefill.advance()
    assert float(logits.float().log_softmax(-1)[wanted.ids[0]]) == pytest.approx(wanted.logprob_sum, abs=0.05)
