"""`python -m defectdiffu`, the same as `defectdiffu`."""

from defectdiffu.cli import main

main()
