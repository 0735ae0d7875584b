"""The SNNergy network, its configuration and its export."""
