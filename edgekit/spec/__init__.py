"""What every room and every language must agree on, each fact once: the machine-readable side of docs/spec.md and
docs/operators.md. Nothing here imports anything but the standard library."""
