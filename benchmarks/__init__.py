"""Speed and memory against named baselines: ``python -m benchmarks --device cpu``."""
