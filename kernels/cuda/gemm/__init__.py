"""The packed integer product on CUDA: packing, tiles, tensor cores, inline PTX."""
