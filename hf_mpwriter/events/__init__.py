"""Event files: append-only, one `os.write` per record. `worker/` opens them, `writer/` appends to them.

Everyone who has to know where the last whole record of a file ends asks `framing`.
"""
