"""The plan of a small run on ranks of this machine, made once and inherited by forked ranks."""

import json
from functools import lru_cache

from ultramem_megatron.config.load import resolve, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.plan import Plan


def local_plan(config: RunConfig, ranks: int) -> Plan:
    """Call it before the ranks are forked: each would take longer to plan than for its first training step."""
    return _plan(json.dumps(to_plain(config), default=str), ranks)


@lru_cache(maxsize=256)
def _plan(settings: str, ranks: int) -> Plan:
    """By the text of the settings: a config holds dictionaries, and so cannot be the key of a cache."""
    return choose_plan(resolve([("config", json.loads(settings))]), local_cluster(ranks))
