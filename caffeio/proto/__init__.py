"""Caffe's message types, generated from the .proto files beside this one."""
