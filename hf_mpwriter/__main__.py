"""`python -m hf_mpwriter`: the command line."""

from hf_mpwriter.cli.main import main

main()
