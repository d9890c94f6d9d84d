"""`python -m deploy.cli`, which `torchrun -m` needs: the same as the command `sieve`."""

from deploy.cli.main import main

main()
