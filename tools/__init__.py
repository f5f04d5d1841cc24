"""Maintainers' scripts. Not part of the package."""
