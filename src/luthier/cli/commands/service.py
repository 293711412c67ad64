"""Keys, the audit log and the OpenAPI document of a job service (`luthier up`), which may run or not.

examples:
  luthier service --data service new-key laptop                     printed once, and kept nowhere
  luthier service --data service new-key ops --project team-a --admin
  luthier service --data service keys
  luthier service --data service revoke key_abc
  luthier service --data service audit                              every change, and whether the list is whole
  luthier service openapi > openapi.json                            every route, what it takes and answers
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--data", type=Path, default=Path("service"), metavar="DIR", help="as of `luthier up`")
    parser.add_argument("--database", metavar="URL", help="as of `luthier up`")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="one of these")
    new = actions.add_parser("new-key", help="make a key and print it")
    new.add_argument("name", help="who or what it is for")
    new.add_argument("--project", default="default", help="whose files, jobs and models it opens (default: default)")
    new.add_argument("--admin", action="store_true", help="it may also grant models to other projects")
    actions.add_parser("keys", help="list keys, without what opens anything")
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("id", help="as `keys` lists it")
    actions.add_parser("audit", help="print every change and check the chain")
    actions.add_parser("openapi", help="print the OpenAPI document, which needs no service")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 if the audit log is broken.

    Raises:
        ServeError: there is no such key or service, or a name is wrong.
        StorageError: the database cannot be opened.
    """
    from datetime import UTC, datetime

    from luthier.errors import ServeError
    from luthier.jobs.service import Options, is_service, open_service, openapi_text

    if args.action == "openapi":
        print(openapi_text(), end="")
        return 0
    if args.action != "new-key" and not is_service(args.data):
        raise ServeError(f"{args.data}: no service; name its folder with --data, or begin one with `luthier up`")
    with open_service(Options(args.data, args.database)) as service:
        if args.action == "new-key":
            print(service.tenants.add_key(args.project, args.name, "admin" if args.admin else "member"))
        elif args.action == "keys":
            for row in service.tenants.listed():
                state = "revoked" if row["revoked_at"] else row["role"]
                print(f"{row['id']}  {state:8} {row['project']}  {row['name']}")
        elif args.action == "revoke":
            if not service.tenants.revoke(args.id):
                raise ServeError(f"{args.id}: no key of this id works; `luthier service keys` lists them")
            print(f"{args.id} opens nothing any more")
        else:
            for row in service.audit.listed():
                at = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
                print(f"{at}  {row['key_id']}  {row['project_id']}  {row['action']}  {row['object_id']}")
            found = service.audit.verify()
            if found.broken_at is not None:
                print(f"broken at entry {found.broken_at}: it does not follow from those before it")
                return 1
            print(f"{found.entries:,} entries, whole; the last link is {found.last}")
    return 0
