"""The `moiety` command, and `python -m moiety`: an interrupt while its verbs are imported ends it at once."""

import os
import signal


def _leave(number: int, _frame: object) -> None:
    os._exit(128 + number)  # as shells count it; nothing has been written yet


def main() -> None:
    """Import the verbs, and run the command."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:  # else it would raise in the midst of an import
        signal.signal(signal.SIGINT, _leave)
    from moiety.cli.main import main as command  # noqa: PLC0415 - all that takes long, after the handler is set

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
