"""Removal of hidden units, heads, channels and rows that do nothing, exactly: docs/rewrites.md."""
