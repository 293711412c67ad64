"""Run OpenAI's fine-tuning API on this machine: upload files, start jobs, follow them, use what they made.

Its address has pages for people as well: the studio, which the same keys open.

Everything lies in one folder: the database, the files, and a folder for each job with its run. A server that is stopped
or killed goes on where it was when the same command is given again. The unmodified `openai` client talks to it with
`base_url` and a key, which `luthier service new-key` makes.

What it serves and what jobs may take stands in `service.toml` in that folder, if it is there (docs/service.md has every
key); `--set` changes one key for this time.

A job that asks for Weights & Biases (`integrations`) is tracked with the key in the environment variable WANDB_API_KEY
(on the server that WANDB_BASE_URL names, if it is set), or into files of its folder where WANDB_MODE=offline.

example:
  luthier service --data service new-key laptop
  luthier up --data service
  luthier up --data service --alias gpt-4o-mini=smollm2-135m-instruct
  luthier up --data service --set limits.jobs_at_once=2 --set log_format=json
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from luthier.cli.service_arguments import add_service_arguments, service_settings

if TYPE_CHECKING:
    from luthier.jobs.settings import ServiceSettings

DRAIN_SECONDS = 30.0
"""How long answers on their way have at the end; jobs have their own time after that (docs/deploy.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_service_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="a base that jobs may train from")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME=MODEL", help="a further name of a base, such as OpenAI's"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until ctrl-C.

    Raises:
        RecipeError: a setting is unknown or wrong.
        ServeError: an option is wrong, or the port is taken.
        StorageError: the database or the folder cannot be opened.
    """
    from luthier.jobs.http.app import Hosts, build_app
    from luthier.jobs.service import alone, open_service
    from luthier.jobs.traces import require_collector
    from luthier.serve import server
    from luthier.web.studio import with_studio

    found, base = service_settings(args)
    settings = _with_models(found, args.model, args.alias)
    if settings.traces:
        require_collector(os.environ)
    options = settings.options(args.data, base, os.environ)
    address = server.Address(args.host, args.port, allow_hosts=settings.allow_hosts)
    hosts = Hosts(*server.hosts_of(address))
    bound = server.listen(address)
    server.set_up_log(settings.log_format)
    as_json = settings.log_format == "json"
    say = logging.getLogger("luthier.jobs").info if as_json else partial(print, file=sys.stderr, flush=True)
    with alone(args.data), open_service(options) as service, service.database.alone():
        say(f"fine-tuning at {server.url_of(bound)} (ctrl-C ends it)")
        say(f"the studio, for people, is at {server.url_of(bound).removesuffix('/v1')}/")
        app = build_app(service, hosts, settings.traces, with_studio)
        server.run(server.server_of(app, DRAIN_SECONDS, settings.log_format), bound)
        say("stopped; jobs that were training are saved and go on at the next start")
    return 0


def _with_models(settings: "ServiceSettings", bases: Sequence[str], aliases: Sequence[str]) -> "ServiceSettings":
    """The settings with the models of the command line, too.

    Raises:
        ServeError: an alias is something else than `NAME=MODEL`.
    """
    from luthier.errors import ServeError

    pairs = {}
    for text in aliases:
        name, equals, model = text.partition("=")
        if not name or not equals or not model:
            raise ServeError(f"--alias {text}: expected NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct")
        pairs[name] = model
    models = settings.models
    more = {"bases": (*models.bases, *bases), "aliases": {**models.aliases, **pairs}}
    return settings.model_copy(update={"models": models.model_copy(update=more)})
