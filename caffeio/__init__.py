"""Caffe's files and data as plain Python values, without Caffe.

>>> net = caffeio.read_net("deploy.prototxt", "net.caffemodel")
>>> [layer.name for layer in net.layers]
>>> caffeio.write_prototxt(net, "copy.prototxt")

Data sources are in `caffeio.data`.
"""

from __future__ import annotations

from caffeio.atomic import atomic_write
from caffeio.attach import nonfinite_blobs
from caffeio.blob_rules import expected_blobs
from caffeio.caffemodel import write_caffemodel
from caffeio.calibration_config import QuantConfig
from caffeio.errors import CaffeFileError, MissingFileError, NetError
from caffeio.graph import SOURCE_TYPES, Layer, Link, Net, Value
from caffeio.nets import parse_net, read_net, to_prototxt, write_prototxt
from caffeio.quant_configs import read_quant_cfg, read_retrain_cfg
from caffeio.record import (
    LayerRecord,
    Record,
    parse_record,
    read_record,
    record_to_text,
    write_record,
)
from caffeio.solver import Solver, read_solver, read_solver_net
from caffeio.solver_state import SolverState, read_solver_state, write_solver_state
from caffeio.unknown import UnknownField, unknown_notes

__version__ = "0.2.0"

__all__ = [
    "SOURCE_TYPES",
    "CaffeFileError",
    "Layer",
    "LayerRecord",
    "Link",
    "MissingFileError",
    "Net",
    "NetError",
    "QuantConfig",
    "Record",
    "Solver",
    "SolverState",
    "UnknownField",
    "Value",
    "atomic_write",
    "expected_blobs",
    "nonfinite_blobs",
    "parse_net",
    "parse_record",
    "read_net",
    "read_quant_cfg",
    "read_record",
    "read_retrain_cfg",
    "read_solver",
    "read_solver_net",
    "read_solver_state",
    "record_to_text",
    "to_prototxt",
    "unknown_notes",
    "write_caffemodel",
    "write_prototxt",
    "write_record",
    "write_solver_state",
]
