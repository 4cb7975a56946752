"""A miniature of the COCO 2017 download: five training and three validation images."""

import json
import zipfile

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 37, "name": "sports ball", "supercategory": "sports", "isthing": 1, "color": [78, 180, 255]},
    {"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 193, "name": "grass-merged", "supercategory": "ground", "isthing": 0, "color": [152, 251, 152]},
]
SKY, GRASS, PERSON, BALL = 187, 193, 1, 37

# Per image: (height, width) and its segments, id: (category, iscrowd, (left, top, width, height)), later ones on top.
TRAIN = {
    # Two ids that differ in the highest byte only, a void strip on the right, a crowd
    142238: (
        (60, 80),
        {
            7: (SKY, 0, (0, 0, 76, 30)),
            65543: (GRASS, 0, (0, 30, 76, 30)),
            131079: (PERSON, 1, (20, 20, 20, 20)),
            16777215: (BALL, 0, (50, 10, 10, 12)),
        },
    ),
    # Stuff only
    9: ((80, 60), {300: (SKY, 0, (0, 0, 60, 50)), 301: (GRASS, 0, (0, 50, 60, 30))}),
    # Eleven things
    25: ((60, 80), {1000 * n: (PERSON, 0, (12 + 5 * n, 10, 4, 40)) for n in range(11)}),
    # A box of 4 x 4, of 16 square pixels
    30: ((80, 60), {5: (GRASS, 0, (0, 20, 60, 60)), 6: (BALL, 0, (30, 30, 4, 4))}),
    # No segments; the image is greyscale
    34: ((60, 80), {}),
}
VAL = {
    # A box of 3 x 3
    139: ((80, 60), {5: (GRASS, 0, (0, 20, 60, 60)), 6: (BALL, 0, (30, 30, 3, 3))}),
    # A person outside the central square
    285: ((60, 80), {70000: (PERSON, 0, (0, 0, 8, 50)), 80000: (BALL, 0, (30, 30, 20, 20))}),
    # A larger one, for areas on both sides of the small and medium sizes' limits
    632: ((120, 120), {1: (SKY, 0, (0, 0, 120, 120))}),
}
TRAIN[25][1][11000] = TRAIN[25][1].pop(0)  # 0 is no id

# (image, category, iscrowd, segmentation, area)
INSTANCES = {
    "train": [
        (142238, BALL, 0, [[50, 10, 60, 10, 60, 22, 50, 22], [12, 40, 18, 40, 15, 50]], 150.0),
        (142238, PERSON, 1, None, 400.0),  # run lengths of the segment, filled in below
        (25, PERSON, 0, [[17, 10, 21, 10, 21, 50, 17, 50]], 160.0),
        (25, PERSON, 0, [[0, 0, 8, 0, 8, 8, 0, 8]], 64.0),  # outside the central square
    ],
    "val": [
        (632, PERSON, 0, [[0, 0, 33, 0, 33, 31, 0, 31]], 1023.0),
        (632, PERSON, 0, [[40, 0, 81, 0, 81, 25, 40, 25]], 1025.0),
        (632, BALL, 0, [[10, 20, 107, 20, 107, 115, 10, 115]], 9217.0),
    ],
}  # fmt: skip


def segment_ids(size, segments):
    """The ids (H, W) int32 of the panoptic PNG."""
    ids = np.zeros(size, np.int32)
    for number, (_, _, (left, top, width, height)) in segments.items():
        ids[top : top + height, left : left + width] = number
    return ids


def run_lengths(mask):
    """Lengths of runs of zeros and ones in turns, down the columns."""
    values = np.concatenate([[0], mask.T.ravel(), [2]])
    edges = np.flatnonzero(np.diff(values.astype(int)))
    return np.diff(np.concatenate([[0], edges])).tolist() if mask.T.ravel()[0] == 0 else None


def panoptic(images):
    annotations = []
    for number, (size, segments) in images.items():
        ids = segment_ids(size, segments)
        infos = []
        for segment, (category, iscrowd, _) in segments.items():
            ys, xs = np.nonzero(ids == segment)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            infos.append(
                {"id": segment, "category_id": category, "iscrowd": iscrowd, "bbox": list(map(int, box)),
                 "area": len(ys)}
            )  # fmt: skip
        annotations.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": infos})
    return {**header(images), "annotations": annotations[::-1], "categories": CATEGORIES}


def header(images):
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": size[0], "width": size[1], "license": 1}
            for number, (size, _) in images.items()
        ],
    }


def instances(split, images):
    annotations = []
    for number, (image, category, iscrowd, segmentation, area) in enumerate(INSTANCES[split]):
        size = images[image][0]
        if segmentation is None:
            counts = run_lengths(segment_ids(*images[image]) == 131079)
            segmentation, box = {"counts": counts, "size": list(size)}, [20.0, 20.0, 20.0, 20.0]
        else:
            xs, ys = zip(*[pair for part in segmentation for pair in zip(part[::2], part[1::2])])
            box = [float(v) for v in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]
        annotations.append(
            {"id": number, "image_id": image, "category_id": category, "iscrowd": iscrowd, "bbox": box,
             "area": area, "segmentation": segmentation}
        )  # fmt: skip
    return {**header(images), "annotations": annotations[::-1], "categories": CATEGORIES[:2]}


def write_folder(root, with_instances=True):
    """Write everything unpacked; the PNGs lie beside `annotations`."""
    (root / "annotations").mkdir(parents=True)
    for split, images in (("train", TRAIN), ("val", VAL)):
        for folder in (f"{split}2017", f"panoptic_{split}2017"):
            (root / folder).mkdir()
        contents = {"panoptic": panoptic(images)}
        if with_instances:
            contents["instances"] = instances(split, images)
        for kind, content in contents.items():
            (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))
        for number, (size, segments) in images.items():
            colours = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            image = Image.fromarray(colours).convert("L" if number == 34 else "RGB")
            image.save(root / f"{split}2017" / f"{number:012d}.jpg", quality=95)
            ids = segment_ids(size, segments)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(root / f"panoptic_{split}2017" / f"{number:012d}.png")


def write_zips(folder, root, inner=zipfile.ZIP_DEFLATED):
    """Pack what `write_folder` wrote as the download is: the panoptic PNGs in a zip in a zip."""
    root.mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(root / f"{split}2017.zip", "w") as archive:
            for path in sorted((folder / f"{split}2017").iterdir()):
                archive.write(path, f"{split}2017/{path.name}")
                archive.writestr(f"__MACOSX/{split}2017/._{path.name}", b"\0\5\26\7")
    with zipfile.ZipFile(root / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "annotations").glob("instances_*.json")):
            archive.write(path, f"annotations/{path.name}")
    with zipfile.ZipFile(root / "panoptic_annotations_trainval2017.zip", "w", inner) as archive:
        for split in ("train", "val"):
            name = f"panoptic_{split}2017"
            archive.write(folder / "annotations" / f"{name}.json", f"annotations/{name}.json")
            with archive.open(f"annotations/{name}.zip", "w") as file, zipfile.ZipFile(file, "w") as pngs:
                for path in sorted((folder / name).iterdir()):
                    pngs.write(path, f"{name}/{path.name}")
                    pngs.writestr(f"__MACOSX/{name}/._{path.name}", b"\0\5\26\7")
