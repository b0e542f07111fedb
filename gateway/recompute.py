"""Entry point of ``python -m gateway.recompute``."""

from gateway.commands.recompute import main

if __name__ == "__main__":
    main()
