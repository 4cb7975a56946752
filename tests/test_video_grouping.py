import torch
from ocl.neural_networks import build_two_layer_mlp
from ocl.perceptual_grouping import SlotAttentionGrouping
from ocl.typing import FeatureExtractorOutput

from ocl_msf.video_grouping import VideoSlotAttentionGrouping


def build(kind, **options):
    torch.manual_seed(0)
    mlp = build_two_layer_mlp(64, 64, 256, initial_layer_norm=True, residual=True)
    return kind(16, 64, ff_mlp=mlp, **options)


@torch.no_grad()
def apart(grouping, frames):
    """Mean distance of normed slots after so many frames, as a share of that at the start."""
    torch.manual_seed(1)
    feature, slots = FeatureExtractorOutput(torch.randn(2, 100, 16), torch.rand(100, 2)), torch.randn(2, 5, 64)
    distances = []
    for _ in range(frames):
        distances.append(torch.pdist(torch.nn.functional.layer_norm(slots[0], (64,))).mean())
        slots = grouping(feature, slots).objects
    return (distances[-1] / distances[0]).item()


def test_slots_stay_apart_over_a_whole_video_before_anything_is_learnt():
    assert apart(build(SlotAttentionGrouping), 24) < 0.05
    assert apart(build(VideoSlotAttentionGrouping), 24) > 0.2


def test_but_for_its_start_it_is_the_slot_attention_of_images():
    plain, video = build(SlotAttentionGrouping, iters=2), build(VideoSlotAttentionGrouping, iters=2, keep_bias=0.0)
    assert apart(video, 3) == apart(plain, 3)
    changed = build(VideoSlotAttentionGrouping, iters=2)
    different = [name for name, x in changed.state_dict().items() if not torch.equal(x, plain.state_dict()[name])]
    assert different == ["slot_attention.gru.bias_ih"]
