"""`python -m avdata`, and the `avdata` command."""

from __future__ import annotations

from avdata.interrupts import exit_on_interrupt


def main() -> None:
    """Run the `avdata` command."""
    # These imports take most of the time of a short command.
    with exit_on_interrupt():
        from avdata.cli.main import main as run  # noqa: PLC0415
    run()


if __name__ == "__main__":
    main()
