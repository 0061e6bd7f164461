"""How a net runs: what runs when, in which shapes, compiled, on a device, or layer after layer."""
