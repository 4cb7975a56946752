import numpy as np
import torch

from ocl_msf.indices import ravel_codes, unravel_codes

SIZES = (7, 4, 3)


def test_joint_numbers_are_numpys():
    joint = torch.arange(7 * 4 * 3).view(2, -1)
    codes = unravel_codes(joint, SIZES)
    assert np.array_equal(codes.numpy(), np.stack(np.unravel_index(joint.numpy(), SIZES), 1))
    assert torch.equal(ravel_codes(codes, SIZES), joint)
