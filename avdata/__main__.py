"""`python -m avdata`."""

from avdata.cli import main

if __name__ == "__main__":
    main()
