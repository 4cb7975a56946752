"""Renderers, groupings and losses of the host by the names of OCLF; equations, scikit-learn and scipy judge."""

import functools

import pytest
import torch
from ocl import decoding, losses, perceptual_grouping
from ocl.neural_networks import build_transformer_encoder
from ocl.neural_networks.feature_pyramid_networks import FeaturePyramidDecoder
from ocl.typing import FeatureExtractorOutput
from ocl.utils.routing import DataRouter
from routed.ocl.losses import ReconstructionLoss
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch.nn import functional as F


def names_and_shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_rendering_composites_front_to_back():
    densities, colors, ground = torch.rand(2, 3, 1, 4), torch.rand(2, 3, 3, 4), torch.rand(2, 3, 4)
    image, light = torch.zeros(2, 3, 4), torch.ones(2, 1, 4)
    for point in range(3):
        alpha = 1 - (-0.5 * densities[:, point]).exp()
        image, light = image + light * alpha * colors[:, point], light * (1 - alpha)
    rendered, points, alphas, reaching = decoding.volume_rendering(densities, colors, 0.5)
    assert torch.allclose(rendered, image, atol=1e-6) and points.shape == colors.shape
    assert torch.allclose(rendered, (reaching * points).sum(1)) and alphas.shape == reaching.shape == densities.shape
    rendered, points, _, reaching = decoding.volume_rendering(densities, colors, 0.5, ground)
    assert torch.allclose(rendered, image + light * ground, atol=1e-6)
    assert torch.equal(points[:, -1], ground) and torch.allclose(reaching[:, -1], light, atol=1e-6)


@pytest.mark.parametrize("white", [False, True])
def test_density_decoder_shows_the_nearest_object(white):
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(torch.nn.Conv2d(5, 7, 1))
    model = decoding.DensityPredictingSlotAttentionDecoder(5, decoder, 4, white, initial_alpha=0.2)
    assert names_and_shapes(model) == {
        "grid": (8, 8, 2),
        "pos_embedding.dense.weight": (5, 4),
        "pos_embedding.dense.bias": (5,),
        "decoder.0.weight": (7, 5, 1, 1),
        "decoder.0.bias": (7,),
    }
    torch.nn.init.zeros_(decoder[0].weight)
    output = model(torch.randn(2, 3, 5))
    assert torch.allclose(output.masks[:, :3], torch.tensor(0.2))  # of each point, as asked for
    if white:  # four points of three objects each
        assert torch.allclose(output.masks[:, 3], torch.tensor(0.8**12))
    torch.nn.init.normal_(decoder[0].weight)
    image = model(slots := torch.randn(2, 3, 5)).reconstruction
    output = model.eval()(slots)
    assert torch.allclose(output.reconstruction, image)
    assert output.object_reconstructions.shape == (2, 3 + white, 3, 8, 8)
    depths = torch.cat([output.object_depth_map, torch.full((2, int(white), 8, 8), 4)], 1)
    assert torch.equal(output.depth_map, output.object_depth_map.amin(1))
    assert output.masks.sum(1).eq(1).all()
    assert torch.equal((depths * output.masks).sum(1), output.depth_map)
    light = (-output.densities.cumsum(2)).exp()
    reflected = torch.cat([torch.ones_like(light[:, :, :1]), light], 2).diff(dim=2).neg()
    if not white:
        assert torch.allclose(output.masks_amodal, reflected.amax(2), atol=1e-6)


def test_density_normalization_keeps_the_sum():
    decoder, slots = torch.nn.Conv2d(5, 7, 1), torch.randn(2, 3, 5)
    plain = decoding.DensityPredictingSlotAttentionDecoder(5, decoder, 4).eval()
    sharp = decoding.DensityPredictingSlotAttentionDecoder(5, decoder, 4, normalize_densities_along_slots=True).eval()
    sharp.load_state_dict(plain.state_dict())
    assert torch.allclose(plain(slots).densities.sum(1), sharp(slots).densities.sum(1), atol=1e-5)


def test_amodal_decoder():
    decoder, slots = torch.nn.Conv2d(5, 4, 1), torch.randn(2, 3, 5)
    slots[0, 1] = 0
    embed = torch.nn.Parameter(torch.randn(5, 8, 8))
    model = decoding.SlotAttentionAmodalDecoder(decoder, positional_embedding=lambda maps, _: maps + embed)
    output = model(slots)
    plain = decoding.SlotAttentionDecoder(decoder, positional_embedding=model.positional_embedding)(slots)
    assert torch.equal(output.reconstruction, plain.reconstruction) and torch.equal(output.masks_vis, plain.masks)
    odds = output.masks / (1 - output.masks)
    assert torch.allclose(odds / odds.sum(1, keepdim=True), output.masks_vis, atol=1e-5)
    assert output.masks_eval[0, 1].eq(0).all()
    assert output.masks_eval[1].amax((1, 2)).eq(1).all() and output.masks_eval[1].amin((1, 2)).eq(0).all()


def test_style_decoder_has_the_weights_of_oclf():
    model = decoding.StyleGANv2Decoder(32, 5, min_features=12, input_size=4, output_size=16)
    shapes = names_and_shapes(model)
    assert shapes["convs.0.weight"] == (16, 32, 3, 3) and shapes["convs.1.weight"] == (12, 16, 3, 3)
    assert [shapes[f"skip_convs.{i}.weight"] for i in range(3)] == [(5, dim, 1, 1) for dim in (32, 16, 12)]
    assert len(shapes) == 10 and model(torch.randn(2, 32, 4, 4)).shape == (2, 5, 16, 16)
    for conv in model.convs:
        torch.nn.init.zeros_(conv.weight), torch.nn.init.zeros_(conv.bias)
    flat = model(torch.ones(1, 32, 4, 4))  # only the first image is left, and the biases of the others
    expected = model.skip_convs[0](torch.ones(1, 32, 1, 1)) + sum(
        conv.bias.view(1, -1, 1, 1) for conv in model.skip_convs[1:]
    )
    assert torch.allclose(flat, expected.expand_as(flat), atol=1e-5)
    with pytest.raises(ValueError, match="powers of 2"):
        decoding.StyleGANv2Decoder(32, input_size=6)


def test_patch_decoder_with_attention_decodes_every_object_alone():
    backbone = functools.partial(build_transformer_encoder, n_layers=1, n_heads=1)
    model = decoding.PatchDecoder(6, 10, 8, backbone).eval()
    slots = torch.randn(2, 2, 3, 6)
    output = model(slots)
    assert output.reconstruction.shape == (2, 2, 8, 10) and output.masks.shape == (2, 2, 3, 8)
    assert torch.allclose(output.reconstruction[1, 0], model(slots[1, :1]).reconstruction[0], atol=1e-5)


def test_feature_pyramid_decoder_has_the_weights_of_oclf():
    model = FeaturePyramidDecoder(128, 16, mask_path="masks", slots_path="a.slots", features_path="features")
    shapes = names_and_shapes(model)
    dims = [128, 128, 64, 32, 16, 8]
    for level in range(1, 6):
        assert shapes[f"lay{level}.weight"] == (dims[level], dims[level - 1], 1, 3, 3)
        assert shapes[f"gn{level}.weight"] == (dims[level],)
    assert [shapes[f"adapter{level}.weight"] for level in range(1, 5)] == [(dim, 2, 5, 5) for dim in dims[1:5]]
    assert shapes["out_lay.weight"] == (8, 1, 1, 3, 3) and shapes["upsampling.weight"] == (16, 2, 8, 8)
    tree = {"a": {"slots": torch.randn(1, 2, 128)}, "masks": torch.rand(1, 2, 196), "features": torch.rand(1, 196, 16)}
    masks = model(inputs=tree)
    assert masks.shape == (1, 2, 224, 224) and torch.allclose(masks.sum(1), torch.ones(1, 224, 224))


def test_stick_breaking():
    torch.manual_seed(0)
    features = FeatureExtractorOutput(torch.eye(4).repeat_interleave(torch.tensor([6, 3, 2, 1]), 0).unsqueeze(0), None)
    model = perceptual_grouping.StickBreakingGrouping(
        4, 4, n_slots=6, kernel_var=0.01, early_termination=True, min_slot_mask=0.05
    )
    assert names_and_shapes(model)["kernel_logvar"] == () and "kernel_logvar" not in dict(model.named_parameters())
    with torch.no_grad():
        for layer in (model.in_proj, model.out_proj):
            layer.weight.copy_(torch.eye(4))
    output = model(features)
    masks = output.feature_attributions[0]
    assert output.is_empty.tolist() == [[False] * 4 + [True] * 2]  # after the four groups nothing is left
    groups = features.features[0].T[output.objects[0, :4].argmax(1)]
    assert torch.allclose(masks[:4], groups, atol=1e-4)
    assert output.objects[0, 4:].eq(0).all() and sorted(output.objects[0, :4].argmax(1).tolist()) == [0, 1, 2, 3]
    model.n_slots, model.add_unexplained = 3, True
    masks = model(features).feature_attributions[0]
    assert masks[0].allclose(torch.ones(12))  # no object was empty, so that the first one gets all
    with pytest.raises(ValueError, match="early_termination"):
        perceptual_grouping.StickBreakingGrouping(4, 4, 3, add_unexplained=True)


def test_k_means_grouping():
    features = torch.randn(2, 30, 4)
    model = perceptual_grouping.KMeansGrouping(3, clustering_kwargs={"random_state": 0, "n_init": 2})
    output = model(FeatureExtractorOutput(features, None))
    for vectors, objects, masks in zip(F.normalize(features, dim=-1), output.objects, output.feature_attributions):
        expected = KMeans(3, random_state=0, n_init=2).fit(vectors.numpy())
        assert torch.allclose(objects, torch.from_numpy(expected.cluster_centers_))
        assert torch.equal(masks.argmax(0), torch.from_numpy(expected.labels_).long()) and masks.sum(0).eq(1).all()
    assert model.object_dim == 4


@pytest.mark.parametrize("normalize", [False, True])
def test_clip_loss(normalize):
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    loss, info = losses.CLIPLoss(normalize, max_temperature=0.7)(first, second)
    logits = F.cosine_similarity(first[:, None], second[None], dim=-1) if normalize else first @ second.T
    assert torch.allclose(info["similarities"], logits, atol=1e-5) and info["temperature"].item() == pytest.approx(0.7)
    both = (0.7 * logits).log_softmax(0).diagonal() + (0.7 * logits).log_softmax(1).diagonal()
    assert loss.item() == pytest.approx(-both.mean().item() / 2, rel=1e-5)
    assert [*losses.CLIPLoss(learn_scale=False).state_dict()] == ["logit_scale"]


def test_segmentation_loss_matches_masks():
    torch.manual_seed(0)
    predicted, true = torch.rand(3, 4, 6, 6), (torch.rand(3, 3, 6, 6) > 0.5).float()
    true[0, 2] = 0
    true[2] = torch.nan  # no labels
    logits = torch.randn(3, 4, 1)
    expected = []
    for masks, targets, scores in zip(predicted[:2], true[:2, 1:], logits[:2, :, 0]):
        targets = [target for target in targets if target.any()]
        costs = torch.tensor([[F.binary_cross_entropy(mask, target) for target in targets] for mask in masks])
        total = costs + 2 * F.binary_cross_entropy_with_logits(scores, torch.ones(4), reduction="none").unsqueeze(1)
        rows, columns = linear_sum_assignment(total.numpy())
        found = torch.zeros(4).index_fill(0, torch.as_tensor(rows), 1)
        expected.append(costs[rows, columns].mean() + 0.5 * F.binary_cross_entropy_with_logits(scores, found))
    loss = losses.DETRSegLoss(3.0, foreground_weight=0.5, foreground_matching_weight=2)
    assert loss(predicted, true, logits).item() == pytest.approx(3 * sum(expected).item() / 2, rel=1e-5)
    videos = predicted.unsqueeze(1), true.unsqueeze(1), logits.unsqueeze(1)
    assert torch.allclose(loss(*videos), loss(predicted, true, logits))
    assert loss(predicted, torch.full_like(true, torch.nan)) == 0


def test_loss_of_objects_in_memory():
    torch.manual_seed(0)
    memory, slots, visible = torch.rand(2, 3, 4, 6, 6), torch.rand(2, 3, 5, 6, 6), torch.rand(2, 3, 5, 6, 6)
    images, video, weights = torch.rand(2, 3, 4, 3, 6, 6), torch.rand(2, 3, 3, 6, 6), torch.rand(2, 3, 5, 4)
    expected = 0.0
    for b, t, k, n in torch.cartesian_prod(*(torch.arange(size) for size in (2, 3, 5, 4))).tolist():
        entropy = F.binary_cross_entropy(memory[b, t, n], (slots[b, t, k] > 0.5).float())
        error = ((images[b, t, n] - video[b, t]) ** 2 * (visible[b, t, k] > 0.5)).sum()
        expected += weights[b, t, k, n] * (entropy + 0.1 * error) / 120
    loss = losses.EM_rec_loss(2)(memory, slots, images, video, visible, weights)
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_data_router_looks_arguments_up():
    tree = {"model": [torch.ones(2, 3)], "batch": {"image": torch.zeros(2, 3)}}
    router = DataRouter(losses.ReconstructionLoss("mse"), {"input": "model.0", "target": "batch.image"})
    routed = ReconstructionLoss("mse", input_path="model.0", target_path="batch.image")
    assert router(**tree) == router(inputs=tree) == routed(inputs=tree) == 1
    with pytest.raises(ValueError, match="target"):
        router(inputs={"model": [torch.ones(1)]})
    with pytest.raises(ValueError, match="no argument `other`"):
        DataRouter(losses.ReconstructionLoss("mse"), {"other": "batch"})(inputs=tree)
