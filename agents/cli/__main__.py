"""`python -m agents.cli` is `deeprec`."""

from agents.cli.main import main

if __name__ == "__main__":
    main()
