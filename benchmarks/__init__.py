"""Speed and memory of featvis beside its best-known peer, Lucent: `python -m benchmarks --help`."""
