"""`python -m avdata`."""

from __future__ import annotations

from avdata.cli.main import main

if __name__ == "__main__":
    main()
