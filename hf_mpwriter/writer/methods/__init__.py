"""The `add_*` methods other than scalars, by what they log; `summary_writer` makes one class of them."""
