"""`python -m fr_deploy` is the `fr-deploy` command."""

from fr_deploy.cli import main

main(prog_name="fr-deploy")
