"""This process as a worker of a run: it joins, appends, makes sure that an uploader lives, and leaves.

`writer/` gets its worker from `registry`.
"""
