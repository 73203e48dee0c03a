"""Environment workers on other nodes of the Ray cluster: a host on each node, behind the interface of a pool.

Apart from the distributed backend, so that the nodes need neither OpenRLHF nor vLLM: ``host`` and ``pool`` are the two
sides and know no Ray, ``nodes`` joins them with it.
"""
