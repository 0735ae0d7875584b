"""`python -m snnergy.cli`, as torchrun starts it."""

from __future__ import annotations

from snnergy.cli.main import main

if __name__ == "__main__":
    main()
