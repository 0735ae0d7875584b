"""`python -m snnergy`, and the `snnergy` command."""

from __future__ import annotations

from avdata.interrupts import exit_on_interrupt


def main() -> None:
    """Run the `snnergy` command."""
    # These imports take most of the time of a short command.
    with exit_on_interrupt():
        from snnergy.cli import main as run  # noqa: PLC0415
    run()


if __name__ == "__main__":
    main()
