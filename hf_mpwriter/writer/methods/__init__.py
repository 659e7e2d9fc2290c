"""The `add_*` methods other than scalars, by what they log; `add_methods` makes one class of them."""
