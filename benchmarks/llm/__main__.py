"""``python -m benchmarks.llm``."""

from benchmarks.llm.throughput import main

main()
