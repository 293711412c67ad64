"""Keys, the queue, the audit log and the OpenAPI document of a job service (`luthier up`), which may run or not.

examples:
  luthier service --data service new-key laptop                     printed once, and kept nowhere
  luthier service --data service new-key ops --project team-a --admin
  luthier service --data service keys
  luthier service --data service revoke key_abc
  luthier service --data service jobs                               what trains and what waits, in its order
  luthier service --data service priority ftjob-abc 10              it goes before those of a lower one; new jobs have 0
  luthier service --data service audit                              every change, and whether the list is whole
  luthier service openapi > openapi.json                            every route, what it takes and answers
  luthier service reference                                         every key of service.toml
"""

import argparse
from typing import TYPE_CHECKING

from luthier.cli.service_arguments import add_service_arguments, service_settings

if TYPE_CHECKING:
    from luthier.jobs.http.app import Service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_service_arguments(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="one of these")
    new = actions.add_parser("new-key", help="make a key and print it")
    new.add_argument("name", help="who or what it is for")
    new.add_argument("--project", default="default", help="whose files, jobs and models it opens (default: default)")
    new.add_argument("--admin", action="store_true", help="it may also grant models to other projects")
    actions.add_parser("keys", help="list keys, without what opens anything")
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("id", help="as `keys` lists it")
    actions.add_parser("jobs", help="list jobs that have not ended: those that train, then the queue in its order")
    priority = actions.add_parser("priority", help="let a job go before others, or after them")
    priority.add_argument("id", metavar="JOB", help="as `jobs` lists it")
    priority.add_argument("number", type=int, metavar="N", help="the higher the sooner; -1000 to 1000, new jobs have 0")
    actions.add_parser("audit", help="print every change and check the chain")
    actions.add_parser("openapi", help="print the OpenAPI document, which needs no service")
    actions.add_parser("reference", help="print every key of service.toml, as Markdown")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 if the audit log is broken.

    Raises:
        RecipeError: a setting is unknown or wrong.
        ServeError: there is no such key, job or service, or a name or number is wrong.
        StorageError: the database cannot be opened.
    """
    from luthier.cli.reference import service_reference
    from luthier.errors import ServeError
    from luthier.jobs.service import Options, is_service, open_service, openapi_text

    if args.action == "openapi":
        print(openapi_text(), end="")
        return 0
    if args.action == "reference":
        print(service_reference(), end="")
        return 0
    if args.action != "new-key" and not is_service(args.data):
        raise ServeError(f"{args.data}: no service; name its folder with --data, or begin one with `luthier up`")
    actions = {
        "new-key": _new_key,
        "keys": _keys,
        "revoke": _revoke,
        "jobs": _jobs,
        "priority": _priority,
        "audit": _audit,
    }
    settings, _ = service_settings(args)
    with open_service(Options(args.data, settings.database)) as service:
        return actions[args.action](service, args)


def _new_key(service: "Service", args: argparse.Namespace) -> int:
    print(service.tenants.add_key(args.project, args.name, "admin" if args.admin else "member"))
    return 0


def _keys(service: "Service", _: argparse.Namespace) -> int:
    for row in service.tenants.listed():
        state = "revoked" if row["revoked_at"] else row["role"]
        print(f"{row['id']}  {state:8} {row['project']}  {row['name']}")
    return 0


def _revoke(service: "Service", args: argparse.Namespace) -> int:
    from luthier.errors import ServeError

    if not service.tenants.revoke(args.id):
        raise ServeError(f"{args.id}: no key of this id works; `luthier service keys` lists them")
    print(f"{args.id} opens nothing any more")
    return 0


def _jobs(service: "Service", _: argparse.Namespace) -> int:
    from luthier.jobs.job_store import WAITING

    for status in ("running", *WAITING):
        for row in service.jobs.in_status(status):
            print(f"{row['id']}  {status:16}  {row['priority']:5}  {row['project_id']}  {row['asked']['model']}")
    return 0


def _priority(service: "Service", args: argparse.Namespace) -> int:
    service.jobs.prioritize(args.id, args.number)
    print(f"{args.id} has the priority {args.number}")
    return 0


def _audit(service: "Service", _: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    for row in service.audit.listed():
        at = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{at}  {row['key_id']}  {row['project_id']}  {row['action']}  {row['object_id']}")
    found = service.audit.verify()
    if found.broken_at is not None:
        print(f"broken at entry {found.broken_at}: it does not follow from those before it")
        return 1
    print(f"{found.entries:,} entries, whole; the last link is {found.last}")
    return 0
