"""Entry point of ``python -m gateway.migrate``."""

from gateway.migrate.command import main

if __name__ == "__main__":
    main()
