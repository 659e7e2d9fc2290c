"""Tokens of tests."""

from __future__ import annotations

SHAPED = "hf_" + "AbCdEfGhIjKlMnOpQrSt" + "UvWxYz0123"
ODD = "odd-secret/of+no#shape"  # known by value only
