"""The command line: `luthier VERB ...`. A verb is a file in `cli/commands`; only the one asked for is imported."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from luthier import __version__, registry
from luthier.errors import LuthierError

COMMANDS = "luthier.cli.commands"
INTERRUPTED = 130


def _overview() -> str:
    verbs = registry.names(COMMANDS)
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}} {registry.summary(COMMANDS, verb)}" for verb in verbs]
    return "\n".join(
        [
            "usage: luthier VERB [options]",
            "",
            "Fine-tune foundation models on your own machines, and prove whether it was worth it.",
            "",
            *lines,
            "",
            "luthier VERB --help tells more of each. luthier --version prints the version.",
        ]
    )


def _dispatch(verb: str, rest: Sequence[str]) -> int:
    module = registry.load(COMMANDS, verb)
    parser = argparse.ArgumentParser(prog=f"luthier {verb}", description=module.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    code = module.run(parser.parse_args(rest))
    return int(code or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 the user can mend it, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"luthier {__version__}")
        return 0
    try:
        return _dispatch(args[0], args[1:])
    except LuthierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `luthier ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        return LuthierError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _told(error: OSError) -> str:
    """What the user can mend; raises the error again if no file is to blame."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error}. Free space and run the same command again; it goes on."
    if error.filename is None:
        raise error
    return f"{error.filename}: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
