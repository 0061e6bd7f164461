"""Layers as steps over images with channels last: packing, geometry, buffers, loops."""
