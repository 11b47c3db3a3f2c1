"""The `deeprec` command, one file a group of subcommands. Parses and prints; computes nothing."""

from agents.cli.main import main

__all__ = ["main"]
