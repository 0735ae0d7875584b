"""`python -m snnergy`."""

from __future__ import annotations

from snnergy.cli import main

if __name__ == "__main__":
    main()
