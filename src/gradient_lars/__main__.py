"""``python -m gradient_lars``, the command line; so it is started under ``torchrun``."""

from gradient_lars.cli import main

if __name__ == "__main__":
    main()
