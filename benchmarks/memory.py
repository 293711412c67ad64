"""Predicted and measured peak memory of training, in a fresh process for each setting.

For each row of the table one process predicts (`luthier.estimate.predict_training`, nothing is trained) and another one
trains four steps, and the operating system says how much it held at most. Rows are of random words,
so that lengths can be chosen. Exits with 1 if a prediction is off by more than 15 %.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._rows import write_recipe

FOLDER = Path(__file__).parent.parent
LIMIT = 0.15
SETTINGS: dict[str, dict[str, object]] = {
    "lora, short rows": {"words": 60, "set": []},
    "lora, long rows": {"words": 400, "set": []},
    "lora, long rows, checkpointing": {"words": 400, "set": ["training.gradient_checkpointing=true"]},
    "lora, float32": {"words": 60, "set": ["model.precision=float32"]},
    "full": {"words": 60, "set": ["adapter.type=full", "optimizer.learning_rate=1e-5"]},
    "lora over nf4": {"words": 60, "set": ["model.quantize=nf4"]},
    "lora over gguf": {"words": 60, "set": ["model.quantize=gguf"]},
    "lora, another shape": {"words": 200, "set": ["model.name=qwen2"]},
}


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


def child(mode: str, recipe_file: str, *assignments: str) -> None:
    """Print the bytes that are predicted or measured."""
    from luthier import assemble
    from luthier.engine.loop import train
    from luthier.estimate import predict_training
    from luthier.models.memory import peak_memory_bytes
    from luthier.progress import Silent
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run, prepare_data

    recipe = load(Path(recipe_file), assignments)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.open(recipe, Path(recipe_file))
        opened = open_run(recipe, folder, prepare_data(recipe, folder, Silent()), Silent())
        trainable = assemble.make_trainable(recipe, opened.loaded)
        run = assemble.build_run(recipe, opened.loaded, trainable, opened.units, "", folder.path)
        if mode == "predict":
            print(max(memory.total for memory in predict_training(opened, run).values()))
        else:
            for _ in train(run):
                pass
            print(peak_memory_bytes(opened.loaded.device))


def ask(mode: str, recipe: Path, assignments: list[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", mode, str(recipe), *assignments]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def main() -> int:
    worst = 0.0
    print(f"{'setting':<34} {'predicted':>10} {'measured':>10} {'off by':>8}")
    with tempfile.TemporaryDirectory() as place:
        other = write_qwen2(Path(place) / "qwen2")
        for name, setting in SETTINGS.items():
            recipe = write_recipe(Path(place), int(str(setting["words"])))
            given = list(setting["set"])  # type: ignore[call-overload]
            assignments = [text.replace("=qwen2", f"={other}") for text in given]
            predicted, measured = (ask(mode, recipe, assignments) for mode in ("predict", "measure"))
            off = predicted / measured - 1
            worst = max(worst, abs(off))
            print(f"{name:<34} {predicted / 2**30:>6.2f} GiB {measured / 2**30:>6.2f} GiB {off:>+8.1%}", flush=True)
    print(f"limit: {LIMIT:.0%}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        sys.exit(main())
