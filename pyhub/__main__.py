"""python -m pyhub: the command line."""

from pyhub.cli import main

main()
