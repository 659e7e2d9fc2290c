"""The view of all ranks: one run that is derived from the scalars of all ranks; the uploader keeps it up to date."""
