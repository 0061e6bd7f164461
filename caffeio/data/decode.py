"""Encoded images to arrays, with damage found that decoders pass over."""

from __future__ import annotations

import numpy as np

__all__ = ["decode_image"]

_JPEG, _JPEG_END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


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
        If the data is no image or is cut short.
    """
    import cv2

    if not data:
        raise ValueError("the image is empty")
    # Decoders fill what is missing with grey and say nothing.
    if data.startswith(_JPEG) and not _whole_jpeg(data):
        raise ValueError("the JPEG image is cut short")
    if data.startswith(_PNG) and _PNG_END not in data[-64:]:
        raise ValueError("the PNG image is cut short")
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


def _whole_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG has its end mark after its pixels, whatever else it embeds.

    Segments are stepped over, because a thumbnail in one has marks of its own; within the
    compressed pixels no mark can occur (ITU-T T.81, B.1.1).
    """
    at = len(_JPEG)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True  # damaged in another way: the decoder will say how
        mark = data[at + 1]
        if mark == _SCAN:
            return data.find(_JPEG_END, at) >= 0
        if mark == 0xFF:
            at += 1
        elif mark == 0x01 or 0xD0 <= mark <= 0xD8:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
