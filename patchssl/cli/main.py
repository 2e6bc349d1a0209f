"""The root of the command line: the table of commands, and exceptions turned into exit codes."""

import os
import select
import sys
import traceback
from collections.abc import Sequence

import click

from patchssl import __version__
from patchssl.cli.failures import describe, is_unforeseen
from patchssl.cli.lazy import Entry, LazyGroup
from patchssl.cli.processes import INTERRUPTED

COMMANDS = {
    "demo": Entry("patchssl.cli.demo:demo", "Pretrain on drawn images and evaluate, without any download."),
    "pretrain": Entry("patchssl.cli.pretrain:pretrain", "Pretrain a vision transformer on a folder of images."),
    "eval": Entry("patchssl.cli.evaluate:evaluate", "Evaluate a backbone, or features from a file."),
    "benchmark": Entry("patchssl.cli.benchmark:benchmark", "Run many evaluations of many models into one table."),
    "inspect": Entry("patchssl.cli.inspect:inspect", "Say what a model is and which weights of its file fit."),
    "results": Entry("patchssl.cli.results:results", "Tables and comparisons of what evaluations found."),
    "data": Entry("patchssl.cli.data:data", "Draw and look at data."),
}

FAILED = 1


@click.group(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="patchssl")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error. Anywhere on the line.")
def root() -> None:
    """Patch-wise self-supervised pretraining of vision transformers, and the evaluation of any vision backbone.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 done; 1 failed, with one line on stderr; 2 wrong usage; 130 interrupted.
    """
    debug, arguments = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with root.make_context("patchssl", arguments) as context:
            root.invoke(context)
        click.echo(nl=False)  # flushes, so that a reader that is gone is noticed here
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError as error:
        if _reader_is_gone():
            return FAILED
        return _fail(error, debug)
    except Exception as error:
        return _fail(error, debug)
    return 0


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Take `--debug` out of the arguments, wherever it stands before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(rest) < end, rest + arguments[end:]


def _fail(error: Exception, debug: bool) -> int:
    line = describe(error)
    if debug:
        traceback.print_exception(error)
    elif is_unforeseen(error):
        line += " (run again with --debug for the traceback)"
    click.echo(f"Error: {line}", err=True)
    return FAILED


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more; if so, keep Python from complaining of it at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return False
    # Trying to write would not tell: what could not be written may be in a buffer or gone already.
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
