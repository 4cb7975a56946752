"""A miniature of the VOC 2012 download, and of SBD: five training, three validation images, four of SBD."""

import tarfile

import numpy as np
from PIL import Image
from scipy.io import savemat

AEROPLANE, BICYCLE, CAT, PERSON, MONITOR = 1, 2, 8, 15, 20
VOID = 255

# By id: (height, width) and objects, (class, (left, top, width, height)), later ones on top, void ones last.
TRAIN = {
    # Two objects of one class, one of another, and something too difficult to tell
    "2007_000032": (
        (60, 80),
        [(PERSON, (16, 5, 14, 30)), (PERSON, (40, 8, 20, 40)), (MONITOR, (22, 40, 14, 14)), (VOID, (64, 20, 9, 9))],
    ),
    # Portrait
    "2007_000039": ((80, 60), [(AEROPLANE, (5, 20, 50, 40))]),
    # Nothing but void, as large as an object
    "2007_000063": ((60, 80), [(VOID, (30, 10, 30, 30))]),
    # The image is greyscale; an object with a box of 4 x 4, of another class than the large one
    "2008_000002": ((60, 80), [(CAT, (20, 10, 30, 30)), (BICYCLE, (55, 10, 4, 4))]),
    # An object outside the central square, in front of one inside
    "2011_003276": ((60, 80), [(CAT, (1, 4, 8, 40)), (BICYCLE, (30, 10, 25, 25))]),
}
VAL = {
    # As many classes as the paper's filter allows, and one more
    "2007_000033": ((70, 100), [(1 + n, (17 + 13 * (n % 5), 2 + 22 * (n // 5), 11, 18)) for n in range(11)]),
    # Eleven objects of one class
    "2007_000042": ((70, 100), [(PERSON, (17 + 13 * (n % 5), 2 + 22 * (n // 5), 11, 18)) for n in range(11)]),
    # A box of 3 x 3
    "2011_003271": ((80, 60), [(CAT, (5, 20, 50, 40)), (MONITOR, (20, 12, 3, 3))]),
}
SBD = {
    "2008_000008": ((60, 80), [(PERSON, (15, 10, 14, 30)), (PERSON, (40, 10, 14, 30))]),
    "2008_000015": ((80, 60), [(AEROPLANE, (5, 20, 40, 40))]),
    "2007_000032": TRAIN["2007_000032"],  # in VOC's train, with VOC's masks
    "2007_000042": VAL["2007_000042"],  # in VOC's val
}
UNLISTED = "2012_004331"  # without masks


def palette():
    """The colours of VOC's masks: the bits of an index, from the lowest, are spread over the colours' highest."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def masks(size, objects, outlined=True):
    """Classes and objects (H, W) uint8; around each object one pixel is void."""
    classes, numbers = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    number = 0
    for category, (left, top, width, height) in objects:
        rows, columns = slice(top, top + height), slice(left, left + width)
        number += category != VOID
        if outlined:
            around = slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1)
            classes[around] = numbers[around] = VOID
        classes[rows, columns] = category
        numbers[rows, columns] = VOID if category == VOID else number
    return classes, numbers


def write_image(path, name, size):
    pixels = np.random.default_rng(int(name)).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels).convert("L" if name == "2008_000002" else "RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def write_mask(path, mask):
    image = Image.fromarray(mask)
    image.putpalette(palette())
    image.save(path)


def write_voc(root):
    """Write `VOCdevkit/VOC2012` below a folder."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("ImageSets/Segmentation", "ImageSets/Main", "SegmentationClass", "SegmentationObject"):
        (folder / name).mkdir(parents=True)
    for name, (size, objects) in {**TRAIN, **VAL}.items():
        write_image(folder / "JPEGImages" / f"{name}.jpg", name, size)
        for kind, mask in zip(("Class", "Object"), masks(size, objects)):
            write_mask(folder / f"Segmentation{kind}" / f"{name}.png", mask)
    for name in [*SBD, UNLISTED]:
        write_image(folder / "JPEGImages" / f"{name}.jpg", name, SBD.get(name, ((60, 80),))[0])
    lists = folder / "ImageSets"
    (lists / "Segmentation" / "train.txt").write_text("".join(f"{name}\n" for name in TRAIN))
    (lists / "Segmentation" / "val.txt").write_text("".join(f"{name} \r\n" for name in VAL) + "\n")
    (lists / "Segmentation" / "trainval.txt").write_text("".join(f"{name}\n" for name in {**TRAIN, **VAL}))
    (lists / "Main" / "train.txt").write_text(f"{UNLISTED}\n")


def write_sbd(root):
    """Write `benchmark_RELEASE/dataset` below a folder; the first image is in SBD only."""
    folder = root / "benchmark_RELEASE" / "dataset"
    for name in ("img", "cls", "inst"):
        (folder / name).mkdir(parents=True)
    for name, (size, objects) in SBD.items():
        write_image(folder / "img" / f"{name}.jpg", name, size)
        classes, numbers = masks(size, objects, outlined=False)
        present = np.unique(classes[classes > 0])
        content = {"Segmentation": classes, "CategoriesPresent": present[:, None]}
        savemat(folder / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
        categories = np.array([[category] for category, _ in objects], np.uint8)
        content = {"Segmentation": numbers, "Categories": categories}
        savemat(folder / "inst" / f"{name}.mat", {"GTinst": content}, do_compression=True)
    names = list(SBD)
    (folder / "train.txt").write_text("\n".join(names[:2]))
    (folder / "val.txt").write_text("\n".join(names[2:]) + "\n")


def write_folder(root, with_sbd=True):
    """Write everything unpacked."""
    write_voc(root)
    if with_sbd:
        write_sbd(root)


def write_tars(folder, root):
    """Pack what `write_folder` wrote as the downloads are, in no particular order."""
    root.mkdir()
    with tarfile.open(root / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(folder / "VOCdevkit", "VOCdevkit")
    if (folder / "benchmark_RELEASE").exists():
        with tarfile.open(root / "benchmark.tgz", "w:gz") as archive:
            archive.add(folder / "benchmark_RELEASE", "./benchmark_RELEASE")
