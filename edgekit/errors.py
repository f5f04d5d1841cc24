"""Every error that edgekit raises on purpose.

    EdgekitError
    ├── UsageError           the call itself is wrong: options, paths, a non-empty output directory
    ├── RecipeError          bad YAML, unknown key, a rule that matches no layer
    ├── SourceError          the model that was given cannot be read as it is: missing, truncated, ambiguous
    ├── UnsupportedError     a valid request that edgekit does not implement: op, layer, dtype, instruction set
    ├── BundleError          missing, corrupt, unsafe or newer-version bundle
    ├── RuntimeUnavailable   a library, device or instruction set that is needed is not there
    └── CheckFailed          the work was done and its result is not good enough: parity, accuracy, disk space

A message is one line: where, what was found, what was expected, what to do.
Programming mistakes stay TypeError, ValueError or assert.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code: int = 2


class UsageError(EdgekitError):
    """The call is wrong: an option, a path, an output directory that is not empty."""


class RecipeError(EdgekitError):
    """A recipe that cannot be read, has an unknown key, or a rule that matches no layer."""


class SourceError(EdgekitError):
    """The model given cannot be read as it is: missing, truncated, or its meaning is ambiguous."""


class UnsupportedError(EdgekitError):
    """A valid request that edgekit does not implement; the message names the layer or operator."""


class BundleError(EdgekitError):
    """A bundle that is missing, corrupt, unsafe or written by a newer edgekit."""


class RuntimeUnavailable(EdgekitError):
    """A library, device or instruction set that the call needs is not there."""


class CheckFailed(EdgekitError):
    """The work was done and its result is not good enough (parity, accuracy, disk space)."""

    exit_code: int = 1


def one_line(error: BaseException, most: int = 200) -> str:
    """An exception's own words on one line, cut after ``most`` characters."""
    return " ".join(str(error).split())[:most]
