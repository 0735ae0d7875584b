"""`python -m snnergy`."""

from snnergy.cli import main

if __name__ == "__main__":
    main()
