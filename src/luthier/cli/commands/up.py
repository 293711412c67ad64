"""Run OpenAI's fine-tuning API on this machine: upload files, start jobs, follow them, use what they made.

Its address has pages for people as well: the studio, which the same keys open.

Everything lies in one folder: the database, the files, and a folder for each job with its run. A server that is stopped
or killed goes on where it was when the same command is given again. The unmodified `openai` client talks to it with
`base_url` and a key, which `luthier service new-key` makes.

A job that asks for Weights & Biases (`integrations`) is tracked with the key in the environment variable WANDB_API_KEY
(on the server that WANDB_BASE_URL names, if it is set), or into files of its folder where WANDB_MODE=offline.

example:
  luthier service --data service new-key laptop
  luthier up --data service
  luthier up --data service --alias gpt-4o-mini=smollm2-135m-instruct
"""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.jobs.webhooks import Target

DRAIN_SECONDS = 30.0
"""How long answers on their way have at the end; jobs have their own time after that (docs/deploy.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("service"),
        metavar="DIR",
        help="what the service keeps (default: service)",
    )
    parser.add_argument("--database", metavar="URL", help="another database than SQLite in DIR, as SQLAlchemy names it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name in Host headers"
    )
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="a base that jobs may train from")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME=MODEL", help="a further name of a base, such as OpenAI's"
    )
    parser.add_argument(
        "--embedder",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="an encoder for /v1/embeddings, such as all-minilm-l6-v2, and the name to serve it under",
    )
    parser.add_argument(
        "--gguf", action="append", default=[], metavar="NAME=FILE", help="a GGUF file that llama.cpp answers for"
    )
    parser.add_argument(
        "--vllm",
        action="append",
        default=[],
        metavar="BASE=URL",
        help="a vLLM server that answers chats of a base and of what jobs made of it",
    )
    parser.add_argument("--vllm-key-env", metavar="NAME", help="environment variable that holds vLLM's key")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="at most so many jobs train at a time, as far as memory lets them (default: 1; 0: they wait)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="of this machine, for all jobs together (default: what is free when a job is to begin)",
    )
    parser.add_argument(
        "--max-hours", type=float, default=168.0, metavar="H", help="longest time of a job (default: 168)"
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=100,
        metavar="N",
        help="jobs of a project that may wait or be paused (default: 100)",
    )
    parser.add_argument(
        "--free-disk",
        type=float,
        default=2.0,
        metavar="GIB",
        help="left free on the disk: below it no job begins and no file is taken (default: 2)",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of its lines, one a request")
    parser.add_argument(
        "--traces",
        action="store_true",
        help="send spans of requests and jobs to OTEL_EXPORTER_OTLP_ENDPOINT (OpenTelemetry; extra otel)",
    )
    parser.add_argument("--webhook", metavar="URL", help="told, signed, when a job ends; needs --webhook-secret-env")
    parser.add_argument(
        "--webhook-secret-env", metavar="NAME", help="environment variable that holds the secret: whsec_ and base64"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until ctrl-C.

    Raises:
        ServeError: an option is wrong, or the port is taken.
        StorageError: the database or the folder cannot be opened.
    """
    from luthier.jobs.http.app import Hosts, build_app
    from luthier.jobs.service import Options, alone, gib_bytes, open_service, parse_aliases, parse_ggufs, parse_vllm
    from luthier.jobs.traces import require_collector
    from luthier.serve import server
    from luthier.web.studio import with_studio

    if args.traces:
        require_collector(os.environ)
    aliases = parse_aliases(args.alias)
    options = Options(
        folder=args.data,
        database=args.database,
        bases=tuple(args.model),
        aliases=aliases,
        vllm=parse_vllm(args.vllm, aliases, _vllm_key(args)),
        ggufs=parse_ggufs(args.gguf),
        embedders=server.parse_embedders(args.embedder),
        at_once=args.jobs,
        hours=args.max_hours,
        most_waiting=args.max_waiting,
        free_bytes=gib_bytes("--free-disk", args.free_disk),
        memory_bytes=sys.maxsize if args.memory is None else gib_bytes("--memory", args.memory),
        webhook=_target(args),
    )
    address = server.Address(args.host, args.port, allow_hosts=tuple(args.allow_host))
    hosts = Hosts(*server.hosts_of(address))
    bound = server.listen(address)
    server.set_up_log(args.log_format)
    as_json = args.log_format == "json"
    say = logging.getLogger("luthier.jobs").info if as_json else partial(print, file=sys.stderr, flush=True)
    with alone(args.data), open_service(options) as service, service.database.alone():
        say(f"fine-tuning at {server.url_of(bound)} (ctrl-C ends it)")
        say(f"the studio, for people, is at {server.url_of(bound).removesuffix('/v1')}/")
        app = build_app(service, hosts, args.traces, with_studio)
        server.run(server.server_of(app, DRAIN_SECONDS, args.log_format), bound)
        say("stopped; jobs that were training are saved and go on at the next start")
    return 0


def _vllm_key(args: argparse.Namespace) -> str | None:
    """vLLM's key, if it has one.

    Raises:
        ServeError: the variable is not set, or nothing needs it.
    """
    from luthier.errors import ServeError

    if args.vllm_key_env is None:
        return None
    key = os.environ.get(args.vllm_key_env, "").strip()
    if not args.vllm or not key:
        raise ServeError("--vllm-key-env NAME, a variable that is set, goes with --vllm")
    return key


def _target(args: argparse.Namespace) -> "Target | None":
    """Where webhooks go.

    Raises:
        ServeError: one of both options is missing, or the variable is not set.
    """
    from luthier.errors import ServeError
    from luthier.jobs.webhooks import Target

    if args.webhook is None and args.webhook_secret_env is None:
        return None
    secret = os.environ.get(args.webhook_secret_env or "", "")
    if args.webhook is None or not secret:
        raise ServeError("--webhook URL and --webhook-secret-env NAME, a variable that is set, go together")
    return Target(args.webhook, secret)
