import collections
import dataclasses
import functools
import pickle
from typing import Any

import pytest
import routed
import torch
from ocl.utils.routing import Combined, Recurrent
from ocl.utils.trees import get_tree_element, map_tree, reduce_tree, split_tree, walk_tree_with_paths
from torch import nn

Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any
    note: str = ""


@dataclasses.dataclass
class Computed:
    value: Any

    @functools.cached_property
    def double(self):
        return 2 * self.value


@pytest.fixture
def shapes_package(tmp_path, monkeypatch):
    """A package of classes that nobody registered anywhere."""
    package = tmp_path / "shapes_for_routing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broken.py").write_text("import no_such_dependency\n")
    (package / "scale.py").write_text(
        "class Scale:\n"
        "    def __init__(self, factor):\n"
        "        self.factor = factor\n"
        "    def __call__(self, value, shift=0):\n"
        "        return self.factor * value + shift\n"
        "def double(value):\n"
        "    return 2 * value\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return routed.shapes_for_routing


def test_arguments_come_from_the_tree_by_path(shapes_package):
    scale = shapes_package.scale.Scale(3, value_path="a.0.left", shift_path="shift")
    tree = {"a": [Pair(2, None)]}
    assert scale(inputs=tree) == 6  # the missing optional argument keeps its default
    assert scale(inputs={**tree, "shift": 1}) == 7
    assert scale(inputs=tree, shift=10, unknown=5) == 16
    assert scale(5, inputs=tree) == 15
    assert scale(a=[Pair(4, None)]) == 12  # keywords are the tree if there is no other


def test_a_missing_argument_is_named_together_with_what_there_is(shapes_package):
    scale = shapes_package.scale.Scale(3, value_path="encoder.features")
    with pytest.raises(ValueError, match=r"`Scale` lacks .*`value`.*`encoder.features`.*only \['tokens'\]"):
        scale(inputs={"encoder": {"tokens": 1}})


def test_without_paths_a_routed_class_is_the_class_itself(shapes_package):
    assert shapes_package.scale.Scale(3)(2, shift=1) == 7
    assert shapes_package.scale.Scale(3, value_path=None)(2, inputs={"value": 5}) == 6
    combined = routed.ocl.utils.routing.Combined(out=Lookup("x", 1))
    assert combined(inputs={"x": torch.tensor(1.0)})["out"] == 2  # an argument called `inputs` arrives
    layer = routed.torch.nn.Linear(2, 1, input_path="x")
    assert isinstance(layer, nn.Linear) and set(layer.state_dict()) == {"weight", "bias"}


def test_what_cannot_be_routed_is_refused(shapes_package):
    with pytest.raises(TypeError, match="double"):
        shapes_package.scale.double  # noqa: B018
    with pytest.raises(ImportError, match="shapes_for_routing.scale.Circle"):
        shapes_package.scale.Circle  # noqa: B018
    with pytest.raises(ImportError, match="no_such_dependency"):
        shapes_package.broken  # noqa: B018
    with pytest.raises(TypeError, match="value_path"):
        shapes_package.scale.Scale(3, value_path=1)
    with pytest.raises(TypeError, match="radius_path"):
        shapes_package.scale.Scale(3, radius_path="a")


def test_modules_that_the_mirror_itself_uses_are_routed_like_others():
    assert routed.functools.partial is not functools.partial
    assert issubclass(routed.functools.partial, functools.partial)


def test_routed_metrics_update_from_outputs():
    metric = routed.torchmetrics.MeanMetric(value_path="losses.mse")
    metric.update(losses={"mse": 1.0}, other=7)
    assert metric(inputs={"losses": {"mse": 5.0}}) == 5.0
    assert metric.compute() == 3.0


def test_routed_objects_can_be_pickled():
    layer = routed.torch.nn.Linear(2, 1, input_path="x")
    clone = pickle.loads(pickle.dumps(layer))
    inputs = {"x": torch.randn(1, 2)}
    assert type(clone) is routed.torch.nn.Linear and type(clone).__module__ == "routed.torch.nn"
    assert torch.equal(clone(inputs=inputs), layer(inputs=inputs))


def test_trees_are_walked_mapped_and_looked_up_alike():
    x, module = torch.zeros(1), nn.Linear(1, 1)
    tree = {"a": Frozen([x, Pair(module, 3)]), "b": x}
    found = list(walk_tree_with_paths(tree))
    assert [path for path, _ in found] == [["a", "value", 0], ["a", "value", 1, "left"], ["b"]]
    assert all(get_tree_element(tree, path) is element for path, element in found)
    mapped = map_tree(tree, lambda leaf: leaf + 1 if leaf is x else leaf)
    assert mapped["b"] is mapped["a"].value[0] and mapped["b"].item() == 1 and x.item() == 0
    assert mapped["a"].value[1] == Pair(module, 3) and isinstance(mapped["a"], Frozen)


def test_reducing_keeps_containers_and_pairs_tensors_by_path():
    same = torch.tensor(1.0)
    first = {"a": same, "b": [same, (same,)], "c": Frozen(same, "first")}
    second = {"a": same + 1, "b": [same + 2, (same + 3,)], "c": Frozen(same + 4, "second")}
    reduced = reduce_tree([first, second], torch.stack)
    assert reduced["a"].tolist() == [1, 2]
    assert reduced["b"][0].tolist() == [1, 3] and reduced["b"][1][0].tolist() == [1, 4]
    assert reduced["c"].value.tolist() == [1, 5] and reduced["c"].note == "first"


def test_splitting_replaces_a_tensor_wherever_it_occurs():
    x, y = torch.arange(6).view(1, 6), torch.zeros(1, 5)
    steps = list(split_tree({"x": x, "again": [x], "y": y}, [["x"]], split_axis=1, chunk_size=2))
    assert [step["x"].tolist() for step in steps] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert all(step["again"][0] is step["x"] and step["y"] is y for step in steps)
    with pytest.raises(ValueError, match="differ in length"):
        next(split_tree({"x": x, "y": y}, [["x"], ["y"]], split_axis=1, chunk_size=1))


class Lookup(nn.Module):
    def __init__(self, path, offset=0.0):
        super().__init__()
        self.path, self.offset = path.split("."), offset

    def forward(self, inputs):
        return get_tree_element(inputs, self.path) + self.offset


def test_what_an_object_has_computed_does_not_stop_copying_it():
    computed = Computed(torch.ones(2, 3, requires_grad=True))
    assert computed.double.requires_grad  # no leaf of the graph, which could not be deep copied
    tree = {"computed": computed}
    assert torch.equal(map_tree(tree, torch.neg)["computed"].value, -computed.value)
    parts = [part["computed"].value for part in split_tree(tree, [["computed", "value"]], 1, 1)]
    assert torch.equal(torch.stack(parts, 1), computed.value)


def test_combined_modules_see_earlier_outputs_by_absolute_path():
    model = Combined(
        outer=Combined(first=Lookup("input.x", 1), second=Lookup("outer.first", 10)),
        last=Lookup("outer.second", 100),
    )
    outputs = model(inputs={"input": {"x": torch.tensor(0.0)}})
    assert outputs["outer"] == {"first": 1, "second": 11} and outputs["last"] == 111
    with pytest.raises(ValueError, match="previous_output"):
        model["previous_output"] = nn.Identity()


def test_recurrent_equals_a_loop_over_frames():
    cell = nn.GRUCell(2, 3)

    class Corrector(nn.Module):
        def forward(self, inputs):
            return {"slots": cell(inputs["frames"], inputs["previous_output"]["predictor"])}

    steps = Recurrent(
        Combined(corrector=Corrector(), predictor=Lookup("video.corrector.slots", 0.5)),
        inputs_to_split=["frames"],
        initial_input_mapping={"predictor": "start"},
    )
    frames, start = torch.randn(4, 5, 2), torch.randn(4, 3)
    tree = {"frames": frames, "start": start}
    outputs = Combined(video=steps)(inputs=dict(tree))["video"]
    state, expected = start, []
    for frame in frames.unbind(1):
        expected.append(cell(frame, state))
        state = expected[-1] + 0.5
    torch.testing.assert_close(outputs["corrector"]["slots"], torch.stack(expected, dim=1))
    torch.testing.assert_close(outputs["predictor"][:, -1], state)


class Count(nn.Module):
    def forward(self, inputs):
        return {"count": inputs["previous_output"]["count"] + 1}


def test_recurrent_leaves_the_tree_alone_whatever_it_starts_with():
    tree = {"x": torch.ones(1, 2), "start": {"count": torch.zeros(1)}}
    counts = Recurrent(Count(), ["x"], {"": "start", "more": "x"})(inputs=tree)["count"]
    assert counts.tolist() == [[1, 2]]
    assert set(tree) == {"x", "start"} and set(tree["start"]) == {"count"}
