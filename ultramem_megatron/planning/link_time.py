"""Seconds of one collective, from the bytes that a rank sends and the shape of its group."""

from ultramem_megatron.planning.placement import GroupShape
from ultramem_megatron.planning.profile import ClusterProfile, Collective, Level


def collective_seconds(
    profile: ClusterProfile, collective: Collective, sent_bytes: float, group: GroupShape
) -> tuple[Level, float]:
    """Which links bound a collective, and its time.

    Inside and between nodes at once, the slower one counts. An all-to-all sends each other rank an equal share, and
    what leaves the node goes through the sender's own network card. The others go in rings that enter a node once, so
    the ranks of the group on a node share the work of its cards: byte by byte, an all-gather across nodes is faster
    than an all-to-all (192 GB/s a rank in NVIDIA/nccl#1576, 20 GB/s in nccl#1138).

    Args:
        profile: The machine.
        collective: Which.
        sent_bytes: Bytes that one rank sends to the others of the group, as ``comm_cost.py`` counts them.
        group: Who takes part.
    """
    if group.ranks == 1 or sent_bytes == 0:
        return Level.NODE, 0.0
    inside = profile.node.of(collective)
    if group.nodes == 1:
        return Level.NODE, inside.seconds(sent_bytes, group.ranks)
    between = profile.network.of(collective)
    if collective is Collective.ALL_TO_ALL:
        near_bytes = sent_bytes * (group.node_ranks - 1) / (group.ranks - 1)
        card_bytes = sent_bytes - near_bytes
    else:
        near_bytes, card_bytes = sent_bytes, sent_bytes / group.node_ranks
    near_seconds = inside.seconds(near_bytes, group.node_ranks) if group.node_ranks > 1 else 0.0
    far_seconds = between.seconds(card_bytes, group.ranks)
    return (Level.NETWORK, far_seconds) if far_seconds >= near_seconds else (Level.NODE, near_seconds)
