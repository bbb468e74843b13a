"""`python -m dimvl`, as launchers of several processes need it."""

from dimvl.cli import main

main()
