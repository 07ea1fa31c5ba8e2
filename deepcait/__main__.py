"""`python -m deepcait` is the command."""

from deepcait.cli.main import command

if __name__ == "__main__":
    command()
