"""What every command does with its terminal: text it can show, one message for what goes wrong."""

import argparse
import codecs
import errno
import io
import logging
import os
import sys
from collections.abc import Callable

# What stands for characters of ours where a terminal has only ASCII, or Latin-1.
_PLAIN = {"─": "-", "│": "|", "…": "...", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">="}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding has no room for, so that no print can fail."""
    assert isinstance(error, UnicodeEncodeError)
    unknown = error.object[error.start : error.end]
    # Half a pair stands for a byte of a file name that is no UTF-8.
    return "".join(
        _PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in unknown
    ), error.end


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the command `saat-jax NAME`, whose description is shown as it is written."""
    return argparse.ArgumentParser(
        prog=f"saat-jax {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def quiet() -> None:
    """Keeps libraries from warning of what is as it should be.

    Orbax warns that a folder opened for reading is only read, and prints the traceback of a save
    that failed in the background above the message that says what to do.
    """
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def run(main: Callable[[], int | None]) -> int:
    """Calls the main function of a command, and answers by one message what a user can mend.

    `SAAT_TRACEBACK=1` in the environment shows where an error was raised.

    Returns:
        The exit status: that of `main`; 1 after an error, 130 after Ctrl-C, 141 if whoever read
        the output has left.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 128 + 2
    except (ValueError, ArithmeticError, ImportError, OSError, MemoryError) as error:
        return _answer(error)
    except RuntimeError as error:
        # Of the device, such as no memory, or of a disk. Any other is a fault of ours.
        of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        if not of_jax and os.strerror(errno.ENOSPC) not in str(error):
            raise
        return _answer(error)


def _answer(error: Exception) -> int:
    if os.environ.get("SAAT_TRACEBACK"):
        raise error
    message = f"{type(error).__name__}: {error}"
    if "RESOURCE_EXHAUSTED" in message or isinstance(error, MemoryError):
        message += (
            "\nThe memory is full: take a smaller batch_size, or --config.model.remat=True "
            "(docs/cost.md)"
        )
    print(f"{message}\n(SAAT_TRACEBACK=1 shows where)", file=sys.stderr)
    return 1
