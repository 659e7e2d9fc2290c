"""The command line, `hf-mpwriter`: parses arguments, prints results, and leaves the work to the folders below."""
