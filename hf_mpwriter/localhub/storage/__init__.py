"""Repositories and their content on disk, without a server.

The endpoints call it; so do tests and the oracle, which read a store directly while a server writes it.
"""
