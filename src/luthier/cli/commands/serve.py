"""Answer OpenAI's chat and completions API with a trained run, or with many adapters of one base.

The prompt is made by the template that the run was trained with, so that a request costs and means what a training row
did. Listed are the run, under the name of its folder, each --adapter under its own, and `base`, the model before
training. Requests for different adapters are computed in one batch.

A GGUF file in place of the run is answered by llama.cpp, under the file's name (extra `export`).

example:
  luthier serve runs/demo
  luthier serve --adapter dates=runs/dates --adapter names=runs/names
  luthier serve --base smollm2-135m-instruct
  luthier serve --embedder all-minilm-l6-v2
  luthier serve --embedder runs/embedder --reranker runs/reranker
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.serve.backend import Backend
    from luthier.serve.limits import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run's folder, or a GGUF file")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a further run on the same base, and the name to serve it under",
    )
    parser.add_argument(
        "--base", metavar="NAME", help="a base model by itself, as model.name; adapters may be added with --register"
    )
    parser.add_argument(
        "--embedder",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="an encoder for /v1/embeddings, such as all-minilm-l6-v2 or a run that trained one, alone or beside more",
    )
    parser.add_argument(
        "--reranker",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a cross-encoder for /rerank, such as a run that trained one, alone or beside others",
    )
    parser.add_argument(
        "--register",
        type=Path,
        metavar="FOLDER",
        help="runs in it may be added by name while the server runs; needs --admin-key-env",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback needs a key")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the key clients must send"
    )
    parser.add_argument(
        "--admin-key-env",
        metavar="NAME",
        help="environment variable that holds the key to add and remove adapters; without it nobody can",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name in Host headers"
    )
    parser.add_argument("--rows", type=int, default=16, help="completions computed together (default 16)")
    parser.add_argument(
        "--queue", type=int, default=64, help="requests in the server at once; more get a 429 (default 64)"
    )
    parser.add_argument("--deadline", type=float, default=600.0, metavar="SECONDS", help="longest time for one answer")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest chat answer when a request sets no limit")
    parser.add_argument("--device", help="as model.device of the recipe; absent: the recipe's")


def run(args: argparse.Namespace) -> int:
    """Serve until ctrl-C.

    Raises:
        ServeError: an option is wrong, or the port is taken.
        ModelError: a model cannot be opened.
    """
    from luthier.errors import ServeError
    from luthier.serve import server
    from luthier.serve.app import build_server
    from luthier.serve.limits import HttpLimits, Limits

    limits = HttpLimits(deadline_seconds=args.deadline, default_tokens=args.max_tokens)
    rows = Limits(rows=args.rows)
    server.require_sensible(limits, rows, args.queue)
    if args.register is not None and args.admin_key_env is None:
        raise ServeError("--register: only the admin can add adapters; name the admin's key with --admin-key-env")
    address = server.Address(args.host, args.port, args.api_key_env, tuple(args.allow_host), args.admin_key_env)
    access = server.access_for(address, os.environ)
    bound = server.listen(address)
    backend = _open(args, rows)
    server.set_up_log()
    names = ", ".join(repr(name) for name in (*backend.models, *backend.encoders))
    print(f"serving {names} at {server.url_of(bound)} (ctrl-C ends it)", file=sys.stderr, flush=True)
    server.run(build_server(backend, access, limits), bound)
    return 0


def _open(args: argparse.Namespace, rows: "Limits") -> "Backend":
    """The models that the options name."""
    from luthier.errors import ServeError
    from luthier.serve.backend import Backend
    from luthier.serve.server import parse_encoders
    from luthier.serving import Runs, open_embedders, open_gguf, open_rerankers, parse_adapters

    has_run = args.run is not None or bool(args.adapter)
    named = {
        "embedders": (parse_encoders(args.embedder, "--embedder", "all-minilm-l6-v2"), open_embedders),
        "rerankers": (parse_encoders(args.reranker, "--reranker", "runs/reranker"), open_rerankers),
    }

    def encoders() -> dict[str, Any]:
        return {kind: open_all(given, args.device) for kind, (given, open_all) in named.items()}

    if args.run is not None and args.run.suffix == ".gguf":
        for option in ("adapter", "base", "register", "device"):
            if vars(args)[option]:
                raise ServeError(f"--{option}: a GGUF file ({args.run}) is served by llama.cpp, and alone")
        worker = open_gguf(args.run, rows, args.queue)
        return Backend([], queue=args.queue, worker=worker, **encoders())
    if not has_run and args.base is None and any(given for given, _ in named.values()):
        if args.register is not None:
            raise ServeError("--register: adapters are added to a base; name a run, or --base NAME")
        return Backend([], rows, args.queue, **encoders())
    folders = {} if not has_run and args.base is not None else parse_adapters(args.run, args.adapter)
    runs = Runs(folders, args.register, args.device, args.base)
    return Backend(runs.models(), rows, args.queue, runs, **encoders())
