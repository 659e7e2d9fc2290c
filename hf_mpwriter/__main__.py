"""`python -m hf_mpwriter`: the command line, for a Python whose scripts are not on PATH."""

from hf_mpwriter.cli.main import main

main()
