"""`python -m eft_local` is `eft`."""

from eft_local.cli import main

main()
