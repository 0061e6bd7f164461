"""Slow, obvious versions of layers, one value at a time; they share no code with the package."""

from __future__ import annotations

import math

import numpy as np


def conv_nd(x, w, stride, pad, dilation, group):
    """Convolve over any number of spatial axes."""
    n, _, *size = x.shape
    outs, per_group, *kernel = w.shape
    out_size = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, pad, dilation, kernel, stride, strict=True)
    ]
    y = np.zeros((n, outs, *out_size))
    for index in np.ndindex(*y.shape):
        b, o, *at = index
        first = o // (outs // group) * per_group
        for c in range(per_group):
            for tap in np.ndindex(*kernel):
                place = [
                    a * t - p + u * d
                    for a, t, p, u, d in zip(at, stride, pad, tap, dilation, strict=True)
                ]
                if all(0 <= q < s for q, s in zip(place, size, strict=True)):
                    y[index] += x[(b, first + c, *place)] * w[(o, c, *tap)]
    return y


def deconv_nd(x, w, stride, pad, dilation, group):
    """Deconvolve over any number of spatial axes: every input value is spread out."""
    n, channels, *size = x.shape
    _, per_group, *kernel = w.shape
    out_size = [
        t * (s - 1) + d * (k - 1) + 1 - 2 * p
        for s, p, d, k, t in zip(size, pad, dilation, kernel, stride, strict=True)
    ]
    y = np.zeros((n, per_group * group, *out_size))
    for index in np.ndindex(*x.shape):
        b, c, *at = index
        first = c // (channels // group) * per_group
        for o in range(per_group):
            for tap in np.ndindex(*kernel):
                place = [
                    a * t - p + u * d
                    for a, t, p, u, d in zip(at, stride, pad, tap, dilation, strict=True)
                ]
                if all(0 <= q < s for q, s in zip(place, out_size, strict=True)):
                    y[(b, first + o, *place)] += x[index] * w[(c, o, *tap)]
    return y


def reorg(x, s, reverse):
    """Darknet's reorg: the two layouts are the same memory read in two ways."""
    n, c, h, w = x.shape
    small = c // (s * s)
    flat_in = x.reshape(-1)
    flat_out = np.zeros_like(flat_in)
    for b in range(n):
        for k in range(c):
            for j in range(h):
                for i in range(w):
                    here = i + w * (j + h * (k + c * b))
                    c2, offset = k % small, k // small
                    there = (i * s + offset % s) + w * s * (
                        (j * s + offset // s) + h * s * (c2 + small * b)
                    )
                    if reverse:
                        flat_out[there] = flat_in[here]
                    else:
                        flat_out[here] = flat_in[there]
    return flat_out.reshape((n, small, h * s, w * s) if reverse else (n, c * s * s, h // s, w // s))


def interp(x, height, width):
    """Bilinear resize with the corner pixels kept in place."""
    n, c, h, w = x.shape
    y = np.zeros((n, c, height, width))
    for i in range(height):
        fy = i * (h - 1) / (height - 1) if height > 1 else 0.0
        r = min(int(fy + 1e-9), h - 1)
        for j in range(width):
            fx = j * (w - 1) / (width - 1) if width > 1 else 0.0
            q = min(int(fx + 1e-9), w - 1)
            r2, q2 = min(r + 1, h - 1), min(q + 1, w - 1)
            a, b = fy - r, fx - q
            y[:, :, i, j] = (
                (1 - a) * (1 - b) * x[:, :, r, q]
                + (1 - a) * b * x[:, :, r, q2]
                + a * (1 - b) * x[:, :, r2, q]
                + a * b * x[:, :, r2, q2]
            )
    return y


def roi_pooling(x, rois, pooled_h, pooled_w, scale):
    """Maximum over the bins of each region (Fast R-CNN)."""
    _, c, h, w = x.shape
    y = np.zeros((len(rois), c, pooled_h, pooled_w))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v * scale) + 0.5), v)) for v in corners)
        bin_h, bin_w = max(y2 - y1 + 1, 1) / pooled_h, max(x2 - x1 + 1, 1) / pooled_w
        for i in range(pooled_h):
            for j in range(pooled_w):
                top = min(max(math.floor(i * bin_h) + y1, 0), h)
                bottom = min(max(math.ceil((i + 1) * bin_h) + y1, 0), h)
                left = min(max(math.floor(j * bin_w) + x1, 0), w)
                right = min(max(math.ceil((j + 1) * bin_w) + x1, 0), w)
                for k in range(c):
                    values = [
                        x[int(image), k, a, b]
                        for a in range(top, bottom)
                        for b in range(left, right)
                    ]
                    y[r, k, i, j] = max(values) if values else 0
    return y


def psroi_pooling(x, rois, dim, k, scale):
    """Position-sensitive pooling: bin (i, j) of channel c averages channel (c * k + i) * k + j."""
    h, w = x.shape[2:]
    y = np.zeros((len(rois), dim, k, k))
    for r, (image, x1, y1, x2, y2) in enumerate(rois):
        left, top = math.floor(x1 + 0.5) * scale, math.floor(y1 + 0.5) * scale
        right, bottom = (math.floor(x2 + 0.5) + 1) * scale, (math.floor(y2 + 0.5) + 1) * scale
        width, height = max(right - left, 0.1) / k, max(bottom - top, 0.1) / k
        for c in range(dim):
            for i in range(k):
                for j in range(k):
                    seen = [
                        x[int(image), (c * k + i) * k + j, b, a]
                        for b in range(
                            math.floor(top + i * height), math.ceil(top + (i + 1) * height)
                        )
                        for a in range(
                            math.floor(left + j * width), math.ceil(left + (j + 1) * width)
                        )
                        if 0 <= b < h and 0 <= a < w
                    ]
                    y[r, c, i, j] = sum(seen) / len(seen) if seen else 0
    return y


def prior_boxes(height, width, sizes, image, step, offset, denser):
    """Boxes of each cell, row by row; denser: each a second time, centred on the cell's lower edge."""
    boxes = []
    for h in range(height):
        for w in range(width):
            x = (w + offset) * step[1]
            for box_w, box_h in sizes:
                for y in [(h + offset) * step[0], (h + 1) * step[0]][: 2 if denser else 1]:
                    boxes += [
                        (x - box_w / 2) / image[1],
                        (y - box_h / 2) / image[0],
                        (x + box_w / 2) / image[1],
                        (y + box_h / 2) / image[0],
                    ]
    return np.array(boxes)


def batch_norm(x, mean, variance, eps, slope, bias):
    """Normalize channel by channel, then multiply and add."""
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        c = index[1]
        y[index] = (x[index] - mean[c]) / math.sqrt(variance[c] + eps) * slope[c] + bias[c]
    return y


def mish(x):
    """``x * tanh(log(1 + exp(x)))``, one value at a time."""
    return np.array([v * math.tanh(math.log1p(math.exp(v))) for v in x.flat]).reshape(x.shape)


def lstm(x, cont, w_x, b, w_h, h, c, static=None, w_static=None):
    """Run an LSTM one gate at a time; gates are in the order input, forget, output, new."""

    def sig(v):
        return 1 / (1 + math.exp(-v))

    steps, streams = x.shape[:2]
    size = w_h.shape[1]
    h, c = h.astype(float).copy(), c.astype(float).copy()
    y = np.zeros((steps, streams, size))
    for t in range(steps):
        for n in range(streams):
            gates = [
                float(b[r] + x[t, n].reshape(-1) @ w_x[r] + (cont[t, n] * h[n]) @ w_h[r])
                for r in range(4 * size)
            ]
            if static is not None:
                gates = [
                    g + float(static[n].reshape(-1) @ w_static[r]) for r, g in enumerate(gates)
                ]
            for k in range(size):
                i, f, o = (sig(gates[q * size + k]) for q in range(3))
                c[n, k] = cont[t, n] * f * c[n, k] + i * math.tanh(gates[3 * size + k])
                y[t, n, k] = o * math.tanh(c[n, k])
            h[n] = y[t, n]
    return y, h, c


def rnn(x, cont, w_x, b, w_h, w_o, b_o, h):
    """Run a plain recurrent net with a tanh output."""
    h = h.astype(float).copy()
    y = np.zeros((*x.shape[:2], len(b_o)))
    for t in range(len(x)):
        for n in range(x.shape[1]):
            h[n] = np.tanh(w_x @ x[t, n].reshape(-1) + b + w_h @ (cont[t, n] * h[n]))
            y[t, n] = np.tanh(w_o @ h[n] + b_o)
    return y, h


def iou(a, b):
    """Intersection over union of two boxes (xmin, ymin, xmax, ymax)."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    common = w * h
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def detections(
    loc,
    conf,
    prior,
    *,
    threshold,
    overlap,
    top_k,
    keep,
    background=0,
    eta=1.0,
    shared=True,
    code="CENTER_SIZE",
    encoded=False,
):
    """SSD's DetectionOutput; arrays are (images, priors, ...) as a net lays them out."""
    images, priors, classes = conf.shape
    rows = []
    for image in range(images):
        found = []
        for label in range(classes):
            if label == background:
                continue
            boxes = []
            for k in range(priors):
                p, v = prior[0, 4 * k : 4 * k + 4], prior[1, 4 * k : 4 * k + 4]
                t = loc[image, k, 0 if shared else label] * (1 if encoded else v)
                w, h = p[2] - p[0], p[3] - p[1]
                if code == "CORNER":
                    boxes.append(p + t)
                elif code == "CORNER_SIZE":
                    boxes.append(p + t * [w, h, w, h])
                else:
                    cx, cy = (p[0] + p[2]) / 2 + t[0] * w, (p[1] + p[3]) / 2 + t[1] * h
                    bw, bh = math.exp(t[2]) * w, math.exp(t[3]) * h
                    boxes.append([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
            order = sorted(
                (k for k in range(priors) if conf[image, k, label] > threshold),
                key=lambda k: -conf[image, k, label],
            )[:top_k]
            kept: list[int] = []
            limit = overlap
            for k in order:
                if all(iou(boxes[k], boxes[other]) <= limit for other in kept):
                    kept.append(k)
                    if eta < 1 and limit > 0.5:
                        limit *= eta
            found += [(conf[image, k, label], label, boxes[k]) for k in kept]
        if keep >= 0 and len(found) > keep:
            found = sorted(found, key=lambda f: -f[0])[:keep]
        found.sort(key=lambda f: (f[1], -f[0]))
        rows += [[image, label, score, *box] for score, label, box in found]
    return np.array(rows, dtype=np.float32).reshape(-1, 7)
