"""Every operation in plain NumPy: what the other devices are held to."""
