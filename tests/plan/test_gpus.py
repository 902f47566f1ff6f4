"""Seconds of collectives, from stated bandwidths."""

import pytest

from lrk.plan.gpus import GPUS, LINK_EFFICIENCY, NETWORK, ring_seconds


def test_one_process_sends_nothing():
    assert ring_seconds("h100", 0, 1) == 0


def test_a_node_has_its_links():
    link = GPUS["h100"].link * LINK_EFFICIENCY
    assert ring_seconds("h100", 10**9, 8) == pytest.approx(1e9 / link)


def test_nodes_share_what_each_receives_among_their_networks():
    """Of two nodes each lacks half of the whole, and takes it in by eight cards."""
    whole = 16 * 10**9
    sent = whole * 15 // 16
    expected = whole / 2 / (8 * NETWORK) / LINK_EFFICIENCY
    inside = sent / GPUS["h100"].link / LINK_EFFICIENCY
    assert ring_seconds("h100", sent, 16) == pytest.approx(max(expected, inside))
    # Where links are faster than the network, that tells.
    assert ring_seconds("b200", sent, 512) > sent / GPUS["b200"].link / LINK_EFFICIENCY
