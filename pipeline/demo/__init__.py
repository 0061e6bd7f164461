"""A small net for handwritten digits, with its data: something to quantize at once."""
