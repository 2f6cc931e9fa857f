"""`python -m feddp`: the same as the console script."""

from feddp.demo.tether import tie_to_parent

if __name__ == "__main__":
    # Before anything is imported that takes time: a demo that was killed must leave nothing behind.
    tie_to_parent()

    from feddp.cli.app import main

    main()
