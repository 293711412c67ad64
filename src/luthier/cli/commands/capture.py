"""Stand before any OpenAI-compatible endpoint, and keep consented chats as training rows for the next round.

Clients give this proxy as their base_url; everything passes through as it comes, streams too. Nothing is recorded
unless a request carries the header `X-Luthier-Consent: yes`, or a key of --consent-keys-env. E-mail addresses, phone,
card and account numbers, IP addresses and secrets are replaced before anything is written; names are not found. Rows
are deleted after --keep-days. docs/moving.md tells all of it.

examples:
  luthier capture --to http://127.0.0.1:8000/v1 --out captured --port 8001
  luthier capture --to https://api.example.com/v1 --out captured --share 0.1 --region DE
  luthier check captured/capture-2026-11-27.jsonl
"""

import argparse
import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.serve.limits import Access
    from luthier.serve.server import Address

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier capture` takes."""
    parser.add_argument(
        "--to", required=True, metavar="URL", help="the endpoint's base, such as https://api.example.com/v1"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where rows are kept, a file a day")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8001, help="0 takes a free one and prints it (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable that holds the key clients must send; it is passed on",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name in Host headers"
    )
    parser.add_argument(
        "--consent-keys-env",
        metavar="NAME",
        help="environment variable with keys, separated by blanks, whose holders agreed to be recorded",
    )
    parser.add_argument(
        "--share", type=_share, default=1.0, metavar="S", help="share of consented requests that is kept (default: 1)"
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="CC",
        help="country whose phone numbers are found without country code, as DE; may be repeated",
    )
    parser.add_argument(
        "--keep-days", type=_days, default=30, metavar="N", help="days that rows are kept (default: %(default)s)"
    )
    parser.add_argument(
        "--keep-bytes", type=_bytes, default=10**9, metavar="N", help="most bytes of all rows, as 500M (default: 1G)"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share above 0 and at most 1")
    return value


def _days(text: str) -> int:
    if not text.isdecimal() or int(text) > 36_500:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of days")
    return int(text)


def _bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G") else (text, "")
    if not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes, as 500M or 2G")
    return int(number) * UNITS[unit]


def run(args: argparse.Namespace) -> int:
    """Pass on and record until ctrl-C.

    Raises:
        ServeError: an option is wrong, the port is taken, or another process records into the folder.
        StorageError: the folder cannot be made.
    """
    from luthier.capture import open_redactor
    from luthier.capture.proxy import Consent, Proxy, build_app, require_url
    from luthier.capture.record import Recorder
    from luthier.capture.store import DayFiles, Retention
    from luthier.serve import server

    require_url(args.to)
    redactor = open_redactor(args.region)
    consent = Consent(args.share, _consenting(args.consent_keys_env, os.environ))
    address = server.Address(args.host, args.port, args.api_key_env, tuple(args.allow_host))
    access = _access(address, args.to)
    bound = server.listen(address)
    files = DayFiles(args.out, Retention(args.keep_days, args.keep_bytes))
    recorder = Recorder(files, redactor)
    server.set_up_log()
    app = build_app(Proxy(args.to, consent, recorder, access), access)
    print(f"recording for {args.to} at {server.url_of(bound)} (ctrl-C ends it)", file=sys.stderr, flush=True)
    server.run(server.server_of(app, patience_seconds=600.0), bound)
    told = ", ".join(f"{number:,} {name}" for name, number in sorted(recorder.counts.items())) or "no chat came"
    print(f"chats by what was kept: {told}; in {args.out}", file=sys.stderr)
    return 0


def _access(address: "Address", to: str) -> "Access":
    """Who may use the proxy: where the endpoint is another machine it asks for its own keys, and none is needed here.

    Raises:
        ServeError: other machines could reach through it what only listens to this one; or as `access_for`.
    """
    from urllib.parse import urlsplit

    from luthier.serve import server
    from luthier.serve.guard import is_loopback
    from luthier.serve.limits import Access

    if address.api_key_env is None and not is_loopback(urlsplit(to).hostname or ""):
        hosts, any_address = server.hosts_of(address)
        return Access(hosts=hosts, any_address=any_address)
    return server.access_for(address, os.environ)


def _consenting(variable: str | None, environment: Mapping[str, str]) -> frozenset[bytes]:
    """sha256 of the keys in a variable.

    Raises:
        ServeError: it is not set or holds none.
    """
    from luthier.errors import ServeError

    if variable is None:
        return frozenset()
    keys = environment.get(variable, "").split()
    if not keys:
        raise ServeError(f"--consent-keys-env {variable}: the variable holds no key; set it, or leave the option out")
    return frozenset(sha256(key.encode()).digest() for key in keys)
