"""Audio-visual fusion: CMQKA and the methods it is compared with."""
