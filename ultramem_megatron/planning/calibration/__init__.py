"""From timings of collectives, row reads and products to a ``ClusterProfile``. No strategy is timed: what predicts them
must not have seen them."""
