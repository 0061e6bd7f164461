"""Encoded images to arrays, with damage found that decoders pass over."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np

__all__ = ["MOST_PIXELS", "decode_image", "most_pixels"]

_JPEG, _JPEG_END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
#: Marks of frames, whose headers say the image's size.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG, _PNG_HEAD, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IEND"
_BMP = b"BM"
#: Bytes of the header of a BMP as OS/2 has it, with sizes of 16 bits.
_OS2_HEAD = 12
#: In the environment: the most pixels that an image may have.
MOST_PIXELS = "CAFFE_QUANT_MAX_PIXELS"


def most_pixels() -> int:
    """Return how many pixels an image may have: 2**27, or what CAFFE_QUANT_MAX_PIXELS says."""
    text = os.environ.get(MOST_PIXELS, "")
    return int(text) if text.isdecimal() else 1 << 27


def decode_image(data: bytes, color: bool | None = True) -> np.ndarray:
    """Decode a JPEG, PNG, BMP, ... image.

    Parameters
    ----------
    data : bytes
        The file's content.
    color : bool or None
        True: three channels, False: one, None: as many as are stored. As Caffe's is_color,
        force_color and force_gray.

    Returns
    -------
    ndarray
        H×W×3 (BGR) or H×W×1, uint8.

    Raises
    ------
    ValueError
        If the data is no image, is cut short, or has more pixels than `most_pixels` allows.
    """
    if not data:
        raise ValueError("the image is empty")
    # of formats whose headers are not read here; it counts if OpenCV is not loaded yet
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(most_pixels()))
    import cv2

    # Decoders fill what is missing with grey and say nothing.
    if data.startswith(_JPEG) and not _whole_jpeg(data):
        raise ValueError("the JPEG image is cut short")
    if data.startswith(_PNG) and not _whole_png(data):
        raise ValueError("the PNG image is cut short or damaged")
    height, width = _size(data)
    if height * width > most_pixels():
        raise ValueError(
            f"the image has {width}×{height} pixels, or is damaged; more than "
            f"{most_pixels():,} are refused unless {MOST_PIXELS} in the environment allows them"
        )
    flag = {True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE, None: cv2.IMREAD_UNCHANGED}[color]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise ValueError(f"the image cannot be decoded: {error.err}") from None
    if image is None:
        raise ValueError("the image is damaged or of a format that is not known")
    if image.dtype != np.uint8:
        raise ValueError(f"the image has {image.dtype} pixels; 8 bits are needed")
    return np.atleast_3d(image)


def _size(data: bytes) -> tuple[int, int]:
    """Return height and width as the header of a PNG, JPEG or BMP says; 0, 0 of other formats."""
    if data.startswith(_PNG):
        width, height = struct.unpack_from(">II", data, len(_PNG) + 8)
        return height, width
    if data.startswith(_JPEG):
        for mark, at in _segments(data):
            if mark in _FRAMES and at + 9 <= len(data):
                height, width = struct.unpack_from(">HH", data, at + 5)
                return height, width
    if data.startswith(_BMP) and len(data) >= 26:
        (head,) = struct.unpack_from("<I", data, 14)
        width, height = struct.unpack_from("<HH" if head == _OS2_HEAD else "<ii", data, 18)
        return abs(height), abs(width)
    return 0, 0


def _whole_png(data: bytes) -> bool:
    """Tell whether the chunks of a PNG fill it, from its head to its end mark.

    The decoder takes as much memory as a chunk says, before it looks whether that much is there.
    """
    at, first = len(_PNG), True
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        if (first and (kind != _PNG_HEAD or length != 13)) or at + 12 + length > len(data):
            return False
        if kind == _PNG_END:
            return True
        at, first = at + 12 + length, False
    return False


def _whole_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG has its end mark after its pixels, whatever else it embeds.

    Segments are stepped over, because a thumbnail in one has marks of its own; within the
    compressed pixels no mark can occur (ITU-T T.81, B.1.1).
    """
    for mark, at in _segments(data):
        if mark == _SCAN:
            return data.find(_JPEG_END, at) >= 0
        if mark < 0:
            return True  # damaged in another way: the decoder will say how
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield mark and place of each segment of a JPEG up to its pixels; -1 where there is none."""
    at = len(_JPEG)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            yield -1, at
            return
        mark = data[at + 1]
        if mark == 0xFF:
            at += 1
            continue
        yield mark, at
        if mark == _SCAN:
            return
        alone = mark == 0x01 or 0xD0 <= mark <= 0xD8
        at += 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
