"""Predicted and measured peak memory of training, in a fresh process for each setting.

    python -m benchmarks.memory [PATTERN ...] [--list] [--model NAME]

A setting is `METHOD, HELD, LENGTH[, checkpointing]`: a method of `benchmarks.adapters`, how the base is held
(`bfloat16`, `float32`, `nf4`, `int8`, `gguf`, or `qwen2`, another shape in bfloat16), and short or long rows. Patterns
choose among them as file names are chosen: `"dora*"`, `"*, long"`. All together take hours on two cores. On a GPU what
counts is what torch's allocator held.

Each process predicts before it trains two steps, and the operating system says how much it held at most. Rows are of
random words, so that lengths can be chosen. What an adapter refuses is said and left out. Exits with 1 if a prediction
is off by more than 15 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks._rows import write_recipe
from benchmarks.adapters import METHODS

FOLDER = Path(__file__).parent.parent
LIMIT = 0.15
LENGTHS = {"short": 30, "long": 300}  # words that are asked
HELD = {
    "bfloat16": "model.precision=bfloat16",
    "float32": "model.precision=float32",
    "nf4": "model.quantize=nf4",
    "int8": "model.quantize=int8",
    "gguf": "model.quantize=gguf",
    "qwen2": "model.precision=bfloat16",
}
CHECKPOINTING = "lora, bfloat16, long, checkpointing"
SETTINGS = [*(f"{m}, {held}, {length}" for m in METHODS for held in HELD for length in LENGTHS), CHECKPOINTING]


def assignments(setting: str, qwen2: Path) -> list[str]:
    """What `--set` says for a setting."""
    method, held, *_ = setting.removesuffix(", checkpointing").rsplit(", ", 2)
    adapter = ", ".join(f"{key} = {json.dumps(value)}" for key, value in METHODS[method].adapter.items())
    given = [f"adapter={{ {adapter} }}", "training.steps=2", "training.rows_per_step=4", HELD[held]]
    if held == "qwen2":
        given.append(f"model.name={qwen2}")
    if setting == CHECKPOINTING:
        given.append("training.gradient_checkpointing=true")
    return given


def write_qwen2(folder: Path) -> Path:
    """A random Qwen 2 of 57 million parameters, unlike the default model: 8 layers, 512 wide, feed-forward 2,048."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from luthier.models.catalog import resolve
    from luthier.recipe import ModelSettings

    tokenizer = AutoTokenizer.from_pretrained(resolve(ModelSettings().name).folder)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(**sizes, **ids, num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def child(recipe_file: str, *given: str) -> None:
    """Print the bytes that are predicted, by what they are for, and those measured; or why the setting is refused."""
    from luthier import assemble
    from luthier.data_stage import prepare_data
    from luthier.engine.loop import train
    from luthier.errors import ModelError, RecipeError
    from luthier.estimate import predict_training
    from luthier.models.memory import peak_memory_bytes
    from luthier.progress import Silent
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    recipe = load(Path(recipe_file), given)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place), listed=False)
        folder.open(recipe, Path(recipe_file))
        try:
            opened = open_run(recipe, folder, prepare_data(recipe, folder, Silent()), Silent())
            trainable = assemble.make_trainable(recipe, opened.loaded)
        except (ModelError, RecipeError) as error:
            print(json.dumps({"refused": str(error)}))
            return
        run = assemble.build_run(recipe, opened.loaded, trainable, opened.units, "", folder.path)
        stages = predict_training(opened, run)
        stage = max(stages, key=lambda name: stages[name].total)
        for _ in train(run):
            pass
        parts = {name: value for name, value in vars(stages[stage]).items() if value}
        measured = peak_memory_bytes(opened.loaded.device)
        print(json.dumps({"predicted": stages[stage].total, "measured": measured, "stage": stage, "parts": parts}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], help="of settings; all if none")
    parser.add_argument("--list", action="store_true", help="say the settings and measure nothing")
    parser.add_argument("--model", help="a name of the catalogue or a folder, in the place of the default model")
    parser.add_argument("--parts", action="store_true", help="say what the predicted bytes are for, too")
    asked = parser.parse_args()
    chosen = [setting for setting in SETTINGS if any(fnmatchcase(setting, pattern) for pattern in asked.patterns)]
    if not chosen:
        parser.error(f"no setting is called {' or '.join(asked.patterns)}; --list says how they are called")
    if asked.list:
        print("\n".join(chosen))
        return 0
    worst = 0.0
    print(f"{'setting':<42} {'predicted':>10} {'measured':>10} {'off by':>8}")
    with tempfile.TemporaryDirectory() as place:
        other = write_qwen2(Path(place) / "qwen2") if any(", qwen2," in setting for setting in chosen) else Path()
        for setting in chosen:
            length = next(length for length in LENGTHS if f", {length}" in setting)
            recipe = write_recipe(Path(place), LENGTHS[length], rows=32)
            given = [*([f"model.name={asked.model}"] if asked.model else []), *assignments(setting, other)]
            command = [sys.executable, "-m", "benchmarks.memory", "_child", str(recipe), *given]
            done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{setting}:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            if "refused" in found:
                print(f"{setting:<42} refused: {found['refused'].splitlines()[0][:70]}", flush=True)
                continue
            predicted, measured = found["predicted"], found["measured"]
            off = predicted / measured - 1
            worst = max(worst, abs(off))
            print(f"{setting:<42} {predicted / 2**30:>6.2f} GiB {measured / 2**30:>6.2f} GiB {off:>+8.1%}", flush=True)
            if asked.parts:
                parts = ", ".join(f"{name} {value / 2**20:,.0f}" for name, value in found["parts"].items())
                print(f"    {found['stage']}: {parts} MiB", flush=True)
    print(f"largest error {worst:.1%}, limit {LIMIT:.0%}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["_child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
