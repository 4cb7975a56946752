"""Classes whose calls take their arguments from a tree: `routed.<module>.<Class>` mirrors `<module>.<Class>`.

A routed class is a subclass of the original one. Its constructor takes a further keyword `<argument>_path`
for every argument of the routed method, a dotted path into the tree that a call receives as `inputs`:

    layer = routed.torch.nn.Linear(4, 2, input_path="encoder.features")
    layer(inputs={"encoder": {"features": torch.zeros(1, 4)}})

The routed method is `update` of a metric, `forward` of a module and `__call__` of everything else.
"""

from routed._mirror import get_package as __getattr__  # noqa: F401
