"""Spiking neurons, convolutions, attention and residuals."""
