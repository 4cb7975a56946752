"""A miniature of an OpenImages download: seven training and two validation images, one of them without masks."""

import tarfile
import zipfile

import numpy as np
from PIL import Image

CLASSES = {
    "/m/011k07": "Tortoise",
    "/m/039xj_": "Human ear",
    "/m/04yx4": "Man",
    "/m/0dzct": "Human face",
    "/m/01mzpv": '"Chair, or stool"',
}
TORTOISE, EAR, MAN, FACE, CHAIR = CLASSES

# Per image: (height, width) and its objects, (label, (left, top, right, bottom) as shares, size of the mask / image's)
TRAIN = {
    # The face is within the man and named first; sizes of 1.5 and 0.5; the tortoise is beside the central square
    "0a11e5d00c0ffee0": (
        (96, 128),
        [
            (EAR, (0.5, 0.25, 0.7, 0.5), 1.5),
            (MAN, (0.25, 0.125, 0.75, 1.0), 0.5),
            (FACE, (0.6, 0.2, 0.8, 0.6), 1.0),
            (TORTOISE, (0.0, 0.75, 0.1, 1.0), 1.0),
        ],
    ),
    "0b00000000000001": ((128, 96), [(CHAIR, (0.1, 0.1, 0.9, 0.9), 1.0)]),
    # Boxes only
    "0c00000000000002": ((96, 128), []),
    # Eleven objects
    "a000000000000003": ((96, 128), [(CHAIR, (0.2 + 0.05 * n, 0.2, 0.24 + 0.05 * n, 0.8), 1.0) for n in range(11)]),
    # One of 3 x 3 pixels
    "a100000000000004": ((96, 128), [(MAN, (0.3, 0.3, 0.6, 0.9), 1.25), (EAR, (0.5, 0.5, 0.52, 0.53), 1.0)]),
    # A CMYK JPEG, whose sides are odd
    "a200000000000005": ((95, 127), [(FACE, (0.25, 0.25, 0.75, 0.75), 1.3)]),
    # Not in the subset
    "ffffffffffffffff": ((96, 128), [(FACE, (0.25, 0.25, 0.75, 0.75), 1.0)]),
}
VAL = {
    "1d00000000000006": ((96, 128), [(MAN, (0.25, 0.25, 0.75, 0.75), 0.75)]),
    "af00000000000007": ((120, 120), [(TORTOISE, (0.0, 0.0, 1.0, 0.5), 1.0), (CHAIR, (0.0, 0.25, 0.5, 0.75), 2.0)]),
}
IMAGES = {"train": TRAIN, "validation": VAL}
SUBSET = sorted({**TRAIN, **VAL}.keys() - {"ffffffffffffffff"}) + ["0d00000000000009"]  # the last is nowhere

MASK_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLICKS = ",XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"  # of the training boxes


def mask_name(image, position):
    label = {**TRAIN, **VAL}[image][1][position][0]
    return f"{image}_{label.replace('/', '')}_{int(image[:4], 16) * 16 + position:08x}.png"


def draw(size, corners, scale):
    """The mask (h, w) bool of an object: an ellipse that is cut off by its box."""
    height, width = (round(side * scale) for side in size)
    left, top, right, bottom = corners
    xs, ys = (np.arange(width) + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height
    x, y = (2 * xs - left - right) / (right - left), (2 * ys - top - bottom) / (bottom - top)
    return (x**2 + y**2 <= 1.2) & (abs(x) <= 1) & (abs(y) <= 1)


def mask_lines(images):
    for image, (_, objects) in images.items():
        for position, (label, (left, top, right, bottom), _) in enumerate(objects):
            name = mask_name(image, position)
            box = name[:-4].rsplit("_", 1)[1]
            yield f"{name},{image},{label},{box},{left},{right},{top},{bottom},0.85000,0.1 0.2 0;0.3 0.4 1"


def box_lines(images):
    """The objects' boxes, and of every image one around a group that has no mask."""
    for image, (_, objects) in images.items():
        for label, (left, top, right, bottom), _ in objects:
            yield f"{image},xclick,{label},1,{left},{right},{top},{bottom},0,0,0,0,0"
        yield f"{image},activemil,{MAN},1,0.1,0.95,0.5,0.75,-1,-1,1,-1,-1"


def write_folder(root, with_boxes=True):
    """Write everything unpacked; the masks lie in folders with the names of their archives."""
    root.mkdir(parents=True)
    rows = [f"{label},{name}" for label, name in CLASSES.items()]
    (root / "class-descriptions-boxable.csv").write_text("\n".join(rows) + "\n")
    for split, images in IMAGES.items():
        (root / split).mkdir()
        for letter in "01af":
            (root / f"{split}-masks-{letter}").mkdir()
        content = [MASK_HEADER, *mask_lines(images)]
        (root / f"{split}-annotations-object-segmentation.csv").write_text("\n".join(content) + "\n")
        if with_boxes:
            extra, values = (CLICKS, ",0.1" * 8) if split == "train" else ("", "")
            content = [BOX_HEADER + extra, *(line + values for line in box_lines(images))]
            prefix = "oidv6-" if split == "train" else ""
            (root / f"{prefix}{split}-annotations-bbox.csv").write_text("\n".join(content) + "\n")
        for image, (size, objects) in images.items():
            pixels = np.random.default_rng(int(image[-4:], 16)).integers(0, 256, (*size, 3), np.uint8)
            mode = {"a200000000000005": "CMYK", "0b00000000000001": "L"}.get(image, "RGB")
            Image.fromarray(pixels).convert(mode).save(root / split / f"{image}.jpg", quality=95)
            for position, (_, corners, scale) in enumerate(objects):
                name = mask_name(image, position)
                Image.fromarray(draw(size, corners, scale)).save(root / f"{split}-masks-{image[0]}" / name)


def write_zips(folder, root):
    """Pack what `write_folder` wrote as the download is: by first characters, masks in zips and images in tars."""
    root.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            (root / path.name).write_bytes(path.read_bytes())
        elif "-masks-" in path.name:
            with zipfile.ZipFile(root / f"{path.name}.zip", "w") as archive:
                for file in sorted(path.iterdir()):
                    archive.write(file, file.name)
        else:
            parts = [("train_0", "0*"), ("train_a", "a*"), ("train_f", "f*")]
            for name, pattern in parts if path.name == "train" else [("validation", "*")]:
                with tarfile.open(root / f"{name}.tar.gz", "w:gz") as archive:
                    for file in sorted(path.glob(pattern)):
                        archive.add(file, f"{name}/{file.name}" if name != "train_f" else file.name)
