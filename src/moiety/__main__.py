"""`python -m moiety`: the same as the `moiety` command."""

from moiety.cli.main import main

if __name__ == "__main__":
    main()
