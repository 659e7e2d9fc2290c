"""`python -m hf_mpwriter`: the command line."""

from hf_mpwriter.cli import main

main()
