"""The command `feddp`, also as `python -m feddp`: what has to be in force before it loads."""

import signal

from feddp.demo.tether import tie_to_parent


def main() -> None:
    """Load the commands and run the one that was asked for; see `feddp.cli.app.main`."""
    # A demo that was killed must leave nothing behind, also while its parts still load.
    tie_to_parent()
    with_traceback = signal.getsignal(signal.SIGINT)
    if with_traceback is signal.default_int_handler:
        # Ctrl-C within the first second ends the process at once and says nothing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from feddp.cli.app import main as run

    signal.signal(signal.SIGINT, with_traceback)
    run()


if __name__ == "__main__":
    main()
