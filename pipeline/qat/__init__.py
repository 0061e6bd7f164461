"""Quantization-aware training without PyTorch: what is fake-quantized, and nets that say so."""
