"""How children of this process are started: what `system/launch` needs for that."""
