"""Command-line options that several scripts have."""

from __future__ import annotations

import argparse
import random


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of the script, line by line."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    seed = random.SystemRandom().randrange(10**6)
    parser.add_argument("--seed", type=int, default=seed, help="of all random choices (default: a random one)")


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add --dir."""
    parser.add_argument("--dir", help="where to work (default: the directory for temporary files)")
