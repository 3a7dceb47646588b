"""The command: `python -m weight_port`."""

if __name__ == "__main__":  # first of all: the imports take seconds
    from crossdim_jax.runtime import stop

    stop.install()

# ruff: noqa: E402
import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

import jax

from crossdim_jax.errors import CrossdimError
from crossdim_jax.storage import files
from crossdim_jax.text import make_visible, say, shown
from weight_port.commands import COMMANDS, DEFAULT

PROGRAM = "python -m weight_port"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; errors go to stderr without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and argv[0] in COMMANDS else None
    with files.output():
        try:
            return _run(name, argv)
        except CrossdimError as error:
            say(f"error: {error}", sys.stderr)
            return 1


def _run(name: str | None, argv: Sequence[str]) -> int:
    command = COMMANDS[name or DEFAULT]
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}" if name else PROGRAM,
        description=command.says,
        epilog="\n\n".join(filter(None, [_others() if name is None else "", command.examples])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.set_defaults(parser=parser)  # for mistakes that only the command can see
    # Taken out first: argparse would read an override with a space in it as a name.
    overrides = [a for a in argv if a.startswith("--config.")] if command.overrides else []
    args, strange = parser.parse_known_args([a for a in argv if a not in overrides])
    if strange:
        hint = " (overrides: --config.field=value)" if command.overrides else ""
        parser.error(f"unknown arguments: {shown(' '.join(strange))}{hint}")
    args.overrides = overrides
    return module.main(args)


def _others() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.says}" for name, command in COMMANDS.items()]
    return "\n".join(
        [f"commands (`{PROGRAM} COMMAND --help`; {DEFAULT} if none is named):", *lines]
    )


if __name__ == "__main__":
    make_visible(logging.lastResort)
    jax.config.update("jax_platforms", "cpu")  # small networks and shapes: leave the GPU alone
    sys.exit(main())
