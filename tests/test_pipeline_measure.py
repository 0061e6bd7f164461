"""Accuracy and closeness, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_nets import small_net

from pipeline.errors import ConfigError
from pipeline.quantize.evaluate import compared_blobs
from pipeline.quantize.measure import Closeness, TopK


def test_top_k_counts_ties_by_index():
    scores = np.array([[1, 5, 5, 0, 0, 0, 0], [7, 6, 5, 4, 3, 2, 1], [0] * 7], np.float32)
    rank = TopK()
    rank.update(scores, np.array([1, 4, 5]))
    assert (rank.first, rank.fifth, rank.samples) == (1, 2, 3)
    rank.update(scores[:1].reshape(1, 7, 1, 1), np.array([2]))
    assert (rank.first, rank.fifth, rank.samples) == (1, 3, 4)
    assert rank.top1 == 25.0
    assert math.isnan(TopK().top1)


def test_closeness_over_several_batches():
    a = np.array([[3.0, 4.0], [1.0, 0.0]])
    b = np.array([[3.0, 3.0], [1.0, 0.0]])
    c = Closeness()
    c.update(a[:1], b[:1])
    c.update(a[1:], b[1:])
    assert c.sqnr == pytest.approx(10 * math.log10(26 / 1))
    assert c.cosine == pytest.approx((21 / (5 * math.sqrt(18)) + 1) / 2)
    assert c.worst == 1.0


def test_closeness_of_zeros():
    c = Closeness()
    c.update(np.zeros((2, 3)), np.array([[0.0, 0, 0], [0, 1, 0]]))
    assert c.cosines == [1.0, 0.0]
    assert c.sqnr == -math.inf
    equal = Closeness()
    equal.update(np.ones((1, 3)), np.ones((1, 3)))
    assert equal.sqnr == math.inf


def test_softmax_is_joined_by_what_it_reads():
    assert compared_blobs(small_net(), ()) == ("fc", "prob")
    assert compared_blobs(small_net(), ("sum",)) == ("sum",)
    with pytest.raises(ConfigError, match="no blob 'logits'"):
        compared_blobs(small_net(), ("logits",))
