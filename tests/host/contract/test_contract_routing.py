"""Contract of `routed`, `ocl.utils.routing` and `ocl.utils.trees`."""

import collections
import copy
import dataclasses
import operator
import sys
import textwrap
from typing import Any

import hydra
import numpy as np
import pytest
import routed
import torch
from ocl.typing import PerceptualGroupingOutput
from ocl.utils import trees
from ocl.utils.routing import Combined, Recurrent
from omegaconf import OmegaConf
from torch import nn

Point = collections.namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Box:
    low: Any
    high: Any = None


@pytest.fixture
def user_package(tmp_path, monkeypatch):
    """An importable package nobody told the framework about."""
    package = tmp_path / "contract_user_pkg"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "things.py").write_text(
        textwrap.dedent(
            """
            import torch

            CONSTANT = 3

            def plain_function(x):
                return x

            class Scale:
                # Neither a module nor a metric: `__call__` gets routed.
                def __init__(self, factor):
                    self.factor = factor

                def __call__(self, value, shift=0.0):
                    return value * self.factor + shift

            class Affine(torch.nn.Module):
                def __init__(self, factor, bias=0.0):
                    super().__init__()
                    self.factor, self.bias = factor, bias

                def forward(self, value, extra=None, switch=False):
                    out = value * self.factor + self.bias
                    if extra is not None:
                        out = out + extra
                    return -out if switch else out
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "contract_user_pkg.sub.things"
    for name in [n for n in sys.modules if n.split(".")[0] == "contract_user_pkg"]:
        del sys.modules[name]


# --------------------------------------------------------------------------------------------------------------- routed


@pytest.mark.core
def test_routed_module_reads_nested_path():
    x = torch.randn(3, 4)
    plain = nn.Linear(4, 2)
    wrapped = routed.torch.nn.Linear(4, out_features=2, input_path="a.b")
    wrapped.load_state_dict(plain.state_dict())
    assert isinstance(wrapped, nn.Linear)
    assert set(wrapped.state_dict()) == {"weight", "bias"}
    assert torch.equal(wrapped(inputs={"a": {"b": x}, "unrelated": 1}), plain(x))


@pytest.mark.core
@pytest.mark.parametrize(
    "tree, path",
    [
        ({"a": {"b": 5.0}}, "a.b"),
        ({"a": [1.0, 5.0]}, "a.1"),
        ({"a": (5.0,)}, "a.0"),
        ({"a": Point(1.0, 5.0)}, "a.y"),
        ({"a": Box({"z": 5.0})}, "a.low.z"),
        ({"a": [Box(Point(5.0, 0.0))]}, "a.0.low.x"),
        (Box(5.0), "low"),
    ],
)
def test_paths_reach_through_containers_and_attributes(tree, path):
    assert trees.get_tree_element(tree, path.split(".")) == 5.0


@pytest.mark.core
@pytest.mark.parametrize("path", ["a.missing", "missing", "a.7x", "a.b.c"])
def test_unknown_path_is_value_error(path):
    with pytest.raises(ValueError):
        trees.get_tree_element({"a": {"b": 1.0}}, path.split("."))
    module = routed.torch.nn.Sigmoid(input_path=path)  # construction itself is fine
    with pytest.raises(ValueError):
        module(inputs={"a": {"b": 1.0}})


@pytest.mark.core
def test_empty_path_returns_the_tree_itself():
    tree = {"a": 1}
    assert trees.get_tree_element(tree, []) is tree


@pytest.mark.core
def test_mapping_keys_win_over_attributes():
    assert trees.get_tree_element({"keys": 3}, ["keys"]) == 3


@pytest.mark.core
def test_arbitrary_user_classes_can_be_routed(user_package):
    module = routed.contract_user_pkg.sub.things
    scale = module.Scale(factor=3.0, value_path="in.v")
    assert scale(inputs={"in": {"v": 2.0}}) == 6.0
    affine = module.Affine(2.0, bias=1.0, value_path="in.v")
    assert affine(inputs={"in": {"v": torch.tensor(2.0)}}) == 5.0


@pytest.mark.core
def test_optional_argument_missing_in_inputs_falls_back_to_default(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    module = Affine(2.0, value_path="v", extra_path="not.there", switch_path="neither")
    assert module(inputs={"v": torch.tensor(1.0)}) == 2.0
    module = Affine(2.0, value_path="v", extra_path="e")
    assert module(inputs={"v": torch.tensor(1.0), "e": 10.0}) == 12.0


@pytest.mark.core
def test_unmapped_arguments_are_never_filled_from_inputs(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    module = Affine(1.0, value_path="v")
    assert module(inputs={"v": torch.tensor(1.0), "extra": 100.0, "switch": True}) == 1.0


@pytest.mark.core
def test_explicit_keywords_override_and_complement_inputs(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    module = Affine(1.0, value_path="v", extra_path="e")
    inputs = {"v": torch.tensor(1.0), "e": 2.0}
    assert module(inputs=inputs, extra=5.0) == 6.0
    assert module(inputs=inputs, switch=True) == -3.0
    assert module(inputs=inputs, not_an_argument=1) == 3.0


@pytest.mark.core
def test_keywords_serve_as_inputs_when_no_inputs_given(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    module = Affine(1.0, value_path="deep.v")
    assert module(deep={"v": torch.tensor(4.0)}, other=3) == 4.0


@pytest.mark.core
def test_without_any_mapping_the_class_behaves_as_usual(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    assert Affine(2.0)(torch.tensor(2.0)) == 4.0
    assert Affine(2.0)(torch.tensor(2.0), extra=1.0) == 5.0
    assert torch.equal(routed.torch.nn.ReLU()(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


@pytest.mark.core
def test_positional_arguments_pass_through_a_mapped_module(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    assert Affine(2.0, extra_path="e")(torch.tensor(1.0), inputs={"e": 5.0}) == 7.0


@pytest.mark.core
def test_argument_called_inputs_can_be_mapped():
    residual = routed.ocl.neural_networks.wrappers.Residual(nn.Identity(), inputs_path="a.b")
    assert torch.equal(residual(inputs={"a": {"b": torch.ones(2)}}), 2 * torch.ones(2))


@pytest.mark.core
def test_one_wrapped_class_supports_many_independent_instances(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    first, second, third = Affine(1.0, value_path="a"), Affine(10.0, value_path="b"), Affine(1.0)
    inputs = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    assert first(inputs=inputs) == 1.0
    assert second(inputs=inputs) == 20.0
    assert third(torch.tensor(3.0)) == 3.0
    assert first(inputs=inputs) == 1.0


@pytest.mark.core
def test_deepcopy_of_a_routed_module_still_routes():
    module = routed.torch.nn.Linear(2, 2, input_path="a")
    clone = copy.deepcopy(module)
    x = torch.randn(1, 2)
    assert torch.equal(clone(inputs={"a": x}), module(inputs={"a": x}))
    with torch.no_grad():
        clone.weight.zero_()
    assert not torch.equal(clone(inputs={"a": x}), module(inputs={"a": x}))


@pytest.mark.core
def test_metric_update_is_routed():
    metric = routed.torchmetrics.MeanMetric(value_path="out.v")
    metric.update(**{"out": {"v": torch.tensor([1.0, 3.0])}, "noise": 7})
    metric.update(inputs={"out": {"v": torch.tensor([5.0, 7.0])}})
    assert metric.compute() == 4.0
    metric.reset()
    # forward = value on the current batch, while the state keeps accumulating.
    assert metric(**{"out": {"v": torch.tensor([2.0])}}) == 2.0
    assert metric(**{"out": {"v": torch.tensor([4.0])}}) == 4.0
    assert metric.compute() == 3.0


@pytest.mark.core
def test_framework_metric_is_routed_and_keeps_constructor_checks():
    metric = routed.ocl.metrics.TensorStatistic(reduction="sum", tensor_path="a")
    metric.update(**{"a": torch.ones(2, 3)})
    assert metric.compute() == 3.0
    with pytest.raises(ValueError):
        routed.ocl.metrics.TensorStatistic(reduction="nope", tensor_path="a")


@pytest.mark.core
def test_hydra_can_instantiate_routed_targets(user_package):
    config = OmegaConf.create(
        {
            "_target_": f"routed.{user_package}.Affine",
            "factor": 2.0,
            "value_path": "x.y",
        }
    )
    module = hydra.utils.instantiate(config)
    assert module(inputs={"x": {"y": torch.tensor(3.0)}}) == 6.0
    partial = hydra.utils.instantiate(OmegaConf.merge(config, {"_partial_": True}))
    assert partial(bias=1.0)(inputs={"x": {"y": torch.tensor(3.0)}}) == 7.0


@pytest.mark.core
def test_missing_package_or_class_is_import_error(user_package):
    with pytest.raises(ImportError):
        operator.attrgetter("surely_not_an_installed_package")(routed)
    with pytest.raises(ImportError):
        operator.attrgetter("contract_user_pkg.sub.things.Missing")(routed)
    config = {"_target_": "routed.torch.nn.NoSuchLayer", "input_path": "a"}
    with pytest.raises(Exception, match="NoSuchLayer"):
        hydra.utils.instantiate(config)


@pytest.mark.core
def test_paths_for_unknown_arguments_are_rejected():
    with pytest.raises(TypeError):
        routed.torch.nn.Linear(2, 2, input_path="a", no_such_argument_path="b")


@pytest.mark.compat
def test_functions_and_constants_cannot_be_routed(user_package):
    with pytest.raises(TypeError):
        operator.attrgetter("contract_user_pkg.sub.things.plain_function")(routed)
    with pytest.raises(TypeError):
        operator.attrgetter("contract_user_pkg.sub.things.CONSTANT")(routed)


@pytest.mark.compat
def test_visualization_call_is_routed():
    vis = routed.ocl.visualizations.Image(n_instances=2, as_grid=False, image_path="a.b")
    image = torch.rand(4, 3, 5, 5)
    assert torch.equal(vis(inputs={"a": {"b": image}}).img_tensor, image[:2])


@pytest.mark.modern
@pytest.mark.compat
def test_null_path_counts_as_unset(user_package):
    Affine = routed.contract_user_pkg.sub.things.Affine
    assert Affine(2.0, value_path="v", extra_path=None)(inputs={"v": torch.tensor(1.0)}) == 2.0


# ---------------------------------------------------------------------------------------------------------------- trees


@pytest.mark.core
def test_walk_tree_yields_tensors_and_modules_in_order():
    layer = nn.Linear(1, 1)
    tree = {
        "a": torch.tensor(1.0),
        "b": [torch.tensor(2.0), ("text", 3, torch.tensor(4.0))],
        "c": Box(low=Point(torch.tensor(5.0), None), high=layer),
        "d": np.zeros(3),
    }
    found = list(trees.walk_tree_with_paths(tree))
    paths = [path for path, _ in found]
    assert paths == [["a"], ["b", 0], ["b", 1, 2], ["c", "low", "x"], ["c", "high"]]
    assert found[-1][1] is layer


@pytest.mark.core
def test_walk_tree_with_custom_predicate_descends_into_modules():
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    tree = {"m": module, "t": torch.zeros(1)}
    found = list(trees.walk_tree_with_paths(tree, instance_check=lambda t: isinstance(t, nn.ReLU)))
    assert [path for path, _ in found] == [["m", "1", "0"]]
    assert found[0][1] is module[1][0]
    floats = list(trees.walk_tree_with_paths({"a": [1.0, 2]}, None, lambda t: isinstance(t, float)))
    assert floats == [(["a", 0], 1.0)]


@pytest.mark.core
def test_map_tree_transforms_tensors_only_and_copies_the_rest():
    shared = torch.ones(2)
    tree = {"a": shared, "b": [shared, "s"], "c": Box(torch.zeros(1), 5)}
    out = trees.map_tree(tree, lambda t: t + 1)
    assert torch.equal(out["a"], 2 * torch.ones(2)) and torch.equal(out["b"][0], out["a"])
    assert out["b"][1] == "s" and isinstance(out["c"], Box) and out["c"].high == 5
    assert torch.equal(out["c"].low, torch.ones(1))
    assert torch.equal(tree["a"], torch.ones(2)) and tree["b"] is not out["b"]


@pytest.mark.core
def test_reduce_tree_applies_function_to_list_of_corresponding_tensors():
    outputs = [
        {"p": PerceptualGroupingOutput(torch.full((2, 3), float(i))), "n": i, "q": {"t": Point(3, None)}}
        for i in range(4)
    ]
    reduced = trees.reduce_tree(outputs, lambda ts: torch.stack(ts, dim=1))
    assert isinstance(reduced["p"], PerceptualGroupingOutput)
    assert reduced["p"].objects.shape == (2, 4, 3)
    assert torch.equal(reduced["p"].objects[0, :, 0], torch.arange(4.0))
    assert reduced["p"].is_empty is None
    assert reduced["n"] == 0  # non tensors come from the first element
    assert reduced["q"] == {"t": Point(3, None)}
    bare = trees.reduce_tree([torch.tensor(1), torch.tensor(2)], torch.stack)
    assert bare.tolist() == [1, 2]


@pytest.mark.modern
@pytest.mark.core
def test_reduce_tree_supports_lists_of_tensors():
    outputs = [{"scales": [torch.tensor(i), (torch.tensor(10 * i),)]} for i in (1, 2)]
    reduced = trees.reduce_tree(outputs, torch.stack)
    assert reduced["scales"][0].tolist() == [1, 2]
    assert reduced["scales"][1][0].tolist() == [10, 20]


@pytest.mark.core
@pytest.mark.parametrize("chunk_size, shape", [(1, (2, 3)), (2, (2, 2, 3))])
def test_split_tree_slices_only_requested_tensors(chunk_size, shape):
    tree = {"video": {"x": torch.arange(24.0).view(2, 4, 3)}, "other": torch.zeros(2, 4), "k": "v"}
    pieces = list(trees.split_tree(tree, [["video", "x"]], 1, chunk_size))
    assert len(pieces) == 4 // chunk_size
    assert all(piece["video"]["x"].shape == shape for piece in pieces)
    assert all(piece["other"] is tree["other"] and piece["k"] == "v" for piece in pieces)
    glued = torch.cat([p["video"]["x"].view(2, chunk_size, 3) for p in pieces], dim=1)
    assert torch.equal(glued, tree["video"]["x"])
    assert tree["video"]["x"].shape == (2, 4, 3)


@pytest.mark.compat
def test_tree_predicates():
    assert trees.is_tensor_or_module(torch.zeros(1)) and trees.is_tensor_or_module(nn.ReLU())
    assert not trees.is_tensor_or_module(np.zeros(1))
    assert trees.is_namedtuple(Point(1, 2))
    assert not trees.is_namedtuple((1, 2)) and not trees.is_namedtuple(Box(1))


# ------------------------------------------------------------------------------------------------------------- Combined


class Add(nn.Module):
    def __init__(self, amount, path):
        super().__init__()
        self.amount, self.path = amount, path

    def forward(self, inputs):
        return trees.get_tree_element(inputs, self.path.split(".")) + self.amount


@pytest.mark.core
def test_combined_runs_in_order_and_shares_outputs():
    model = Combined(
        first=Add(1, "input.x"),
        second=Combined(inner=Add(10, "first"), outer=Add(100, "second.inner")),
        third=Add(1000, "second.outer"),
    )
    assert isinstance(model, nn.ModuleDict) and list(model.keys()) == ["first", "second", "third"]
    batch = {"x": torch.tensor(0.0)}
    outputs = model(inputs={"input": batch})
    assert outputs["input"] is batch
    assert outputs["first"] == 1
    assert outputs["second"]["inner"] == 11 and outputs["second"]["outer"] == 111
    assert outputs["third"] == 1111


@pytest.mark.core
def test_combined_mixes_with_routed_modules_and_extends_dynamically():
    model = Combined(sig=routed.torch.nn.Sigmoid(input_path="input.x"))
    model["shift"] = Add(1, "sig")  # evaluation adds modules like this
    outputs = model(inputs={"input": {"x": torch.zeros(2)}})
    assert torch.allclose(outputs["shift"], torch.full((2,), 1.5))


@pytest.mark.core
def test_combined_propagates_gradients_and_parameters():
    model = Combined(lin=routed.torch.nn.Linear(2, 1, input_path="input.x"), out=Add(0, "lin"))
    assert set(dict(model.named_parameters())) == {"lin.weight", "lin.bias"}
    model(inputs={"input": {"x": torch.ones(1, 2)}})["out"].sum().backward()
    assert torch.equal(model["lin"].weight.grad, torch.ones(1, 2))


# ------------------------------------------------------------------------------------------------------------ Recurrent


class SlotStep(nn.Module):
    """One step of a fake grouping: new slots = previous slots + current features."""

    def forward(self, inputs):
        objects = (
            inputs["previous_output"]["objects"]
            if isinstance(inputs["previous_output"], dict)
            else inputs["previous_output"].objects
        )
        feature = trees.get_tree_element(inputs, ["features", "x"])
        return PerceptualGroupingOutput(objects=objects + feature, feature_attributions=2 * feature)


@pytest.mark.core
def test_recurrent_stacks_dataclass_outputs_over_time():
    features = torch.randn(2, 5, 3)
    inputs = {"features": {"x": features}, "init": torch.ones(2, 3), "note": "kept"}
    module = Recurrent(SlotStep(), inputs_to_split=["features.x"], initial_input_mapping={"objects": "init"})
    out = module(inputs=inputs)
    assert isinstance(out, PerceptualGroupingOutput)
    assert torch.allclose(out.objects, 1 + features.cumsum(1), atol=1e-6)
    assert torch.allclose(out.feature_attributions, 2 * features)
    assert out.is_empty is None
    assert set(inputs) == {"features", "init", "note"}
    assert inputs["features"]["x"].shape == (2, 5, 3)


class Accumulate(nn.Module):
    def forward(self, inputs):
        return inputs["previous_output"] + inputs["x"]


@pytest.mark.core
@pytest.mark.parametrize("axis", [0, 1])
def test_recurrent_with_bare_tensor_state_and_split_axis(axis):
    x = torch.randn(4, 4)
    module = Recurrent(Accumulate(), ["x"], {"": "start"}, split_axis=axis)
    out = module(inputs={"x": x, "start": torch.zeros(4)})
    assert torch.allclose(out, x.cumsum(axis), atol=1e-6)


@pytest.mark.compat
def test_recurrent_chunks_keep_their_axis_and_get_stacked():
    x = torch.arange(6.0).view(1, 6)
    module = Recurrent(Accumulate(), ["x"], {"": "start"}, split_axis=1, chunk_size=2)
    out = module(inputs={"x": x, "start": torch.zeros(1, 2)})
    assert out.tolist() == [[[0.0, 1.0], [2.0, 4.0], [6.0, 9.0]]]


@pytest.mark.core
def test_recurrent_nested_initial_mapping_and_several_split_inputs():
    class Step(nn.Module):
        def forward(self, inputs):
            state = inputs["previous_output"]["a"]["b"]
            return {"a": {"b": state + inputs["x"] * inputs["y"]}}

    x, y = torch.randn(1, 3), torch.randn(1, 3)
    module = Recurrent(Step(), ["x", "y"], {"a.b": "s"})
    out = module(inputs={"x": x, "y": y, "s": torch.zeros(1)})
    assert torch.allclose(out["a"]["b"], (x * y).cumsum(1), atol=1e-6)


@pytest.mark.core
def test_recurrent_around_combined_gives_corrector_predictor_loop():
    """The pattern of video models: slots of one frame are transformed into the next queries."""

    class Previous(nn.Module):
        def forward(self, inputs):
            return inputs["previous_output"]["predictor"] + inputs["features"]

    steps = Recurrent(
        Combined(
            previous=Previous(),
            corrector=Add(1, "video.previous"),
            predictor=Add(10, "video.corrector"),
        ),
        inputs_to_split=["features"],
        initial_input_mapping={"predictor": "conditioning"},
    )
    model = Combined(video=steps, after=Add(0, "video.corrector"))
    features = torch.tensor([[100.0, 200.0, 300.0]])
    out = model(inputs={"features": features, "conditioning": torch.zeros(1)})
    assert out["video"]["corrector"].tolist() == [[101.0, 312.0, 623.0]]
    assert out["video"]["predictor"].tolist() == [[111.0, 322.0, 633.0]]
    assert torch.equal(out["after"], out["video"]["corrector"])


@pytest.mark.core
def test_recurrent_with_routed_module_backpropagates_through_time():
    module = Recurrent(
        routed.torch.nn.GRUCell(2, 3, input_path="feats", hx_path="previous_output"),
        inputs_to_split=["feats"],
        initial_input_mapping={"": "init"},
    )
    reference = nn.GRU(2, 3, batch_first=True)
    cell = module.module
    reference.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    feats = torch.randn(2, 4, 2, requires_grad=True)
    init = torch.zeros(2, 3, requires_grad=True)
    out = module(inputs={"feats": feats, "init": init, "model": nn.Identity()})
    assert torch.allclose(out, reference(feats)[0], atol=1e-6)
    out[:, -1].sum().backward()
    assert feats.grad[:, 0].abs().sum() > 0 and init.grad.abs().sum() > 0


@pytest.mark.core
def test_recurrent_missing_input_is_value_error():
    module = Recurrent(Accumulate(), ["x"], {"": "start"})
    with pytest.raises(ValueError):
        module(inputs={"start": torch.zeros(1)})
    with pytest.raises(ValueError):
        module(inputs={"x": torch.zeros(1, 2)})
