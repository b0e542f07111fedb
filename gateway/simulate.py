"""Entry point of ``python -m gateway.simulate``."""

from gateway.commands.simulate import main

if __name__ == "__main__":
    main()
