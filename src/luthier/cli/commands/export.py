"""Write a trained run for other programs, and prove that what was written is the trained model.

After it is written, the artifact is opened in a fresh process by the program that it is for, answers the run's test
rows, and is compared with the trained model; `parity.json` in the folder has the figures. What differs by more than
rounding explains is refused.

examples:
  luthier export runs/demo --format safetensors --out demo-hf         a folder that transformers opens
  luthier export runs/demo --format peft --out demo-lora              the adapter alone, for peft
  luthier export runs/demo --format gguf --type q8_0 --out demo-gguf  a file that llama.cpp runs
  luthier export runs/demo --format ollama --out demo-ollama          such a file and an Ollama Modelfile
  luthier export runs/demo --format packed --type nf4 --out demo-nf4  merged and quantized, for `model.quantize`

Merging into few bits can erase what was learned: `packed` measures the share of the update that survives in each layer
and refuses below 0.9.
"""

import argparse
from pathlib import Path

from luthier.errors import ExportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained run's folder, such as runs/demo")
    parser.add_argument("--format", required=True, metavar="NAME", help="safetensors, peft, gguf, ollama or packed")
    parser.add_argument(
        "--type",
        metavar="NAME",
        help="number format of the weights. safetensors: bfloat16, float16, float32 (default: that of the training); "
        "gguf, ollama: f16 (default), bf16, q8_0, q4_k_m; packed: nf4 (default), int8",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is empty or not there")
    parser.add_argument(
        "--rows",
        type=int,
        default=200,
        metavar="N",
        help="test rows to ask the artifact (default 200; fewer is quicker)",
    )
    parser.add_argument(
        "--least-kept",
        type=float,
        metavar="SHARE",
        help="where weights are rounded to 8 bits or fewer: share of the update that must survive in each layer "
        "(default 0.9; 0 writes whatever is left)",
    )
    parser.add_argument(
        "--keep-failed", action="store_true", help="keep an artifact that was refused, as DIR.failed, to look into it"
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print what the gate found.

    Raises:
        ExportError: see `luthier.export.make.export`; or there would be nothing to ask.
    """
    from luthier.export.make import build_exporter, export
    from luthier.export.parity import told
    from luthier.progress import Terminal

    if args.rows < 1:
        raise ExportError(f"--rows {args.rows}: the gate must ask at least one test row")
    exporter = build_exporter(args.format, args.type, args.least_kept)
    parity = export(args.run, exporter, args.out, Terminal(), args.keep_failed, args.rows)
    print("\n".join([*told(parity), *exporter.told(), str(args.out)]))
    return 0
