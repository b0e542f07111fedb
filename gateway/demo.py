"""Entry point of ``python -m gateway.demo``."""

from gateway.commands.demo import main

if __name__ == "__main__":
    main()
