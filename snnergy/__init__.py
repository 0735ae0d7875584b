"""SNNergy: a spiking network with linear-cost cross-modal attention."""
