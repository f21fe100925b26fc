"""`python -m featvis` is `featvis`."""

from featvis.cli import main

main()
