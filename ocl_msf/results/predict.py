"""Slots and masks of many pictures as files; the command is `ocl-msf predict`.

Layout of a folder, where the key of a picture is its name in what was given, with -2 and so on if that is taken:

    masks/<key>.png         palette image: the slot of every pixel, 255 where the model was not shown the picture
    overlays/<key>.png      the picture, with its slots in the same colours
    slots/<key>.safetensors `slots` (t, k, d) float32, t = 1; written last, so that a picture which has it is done
    slots.safetensors       `slots` (n, k, d) of all pictures, and index.csv the key, frame, row and source of each
    contact.png             the first overlays
    predict.json            what made all this
"""

import csv
import hashlib
import io
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from matplotlib import rc_context
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from ocl_msf.files import DataError, decode_json, encode_json, replacing
from ocl_msf.inference.loading import load
from ocl_msf.inference.model import Model
from ocl_msf.inference.sources import Picture, find_pictures
from ocl_msf.results import style

RECORD, INDEX, CONTACT = "predict.json", "index.csv", "contact.png"
THREADS = 4  # that decode and encode pictures
TILES, COLUMNS, SIDE = 24, 6, 320  # of the contact sheet; the side of a picture in pixels
KINDS = {"masks": "png", "overlays": "png", "slots": "safetensors"}  # of a picture's files, in the order of writing

Stamp = Dict[str, str]


class Tally(NamedTuple):
    """How many pictures were done now, how many before, and how many inputs could not be read."""

    done: int
    kept: int
    unread: int


def predict(
    source: Union[str, Path],
    inputs: Sequence[str],
    out: Path,
    batch_size: int = 16,
    device: Optional[str] = None,
    fit: str = "crop",
) -> Tally:
    """Find slots and masks of pictures, and write them; for the layout see the module.

    A picture whose files are there is not done again, unless it has changed. What cannot be read is named on stderr,
    and the others are done.

    Args:
        source: a model, see `ocl_msf.load`.
        inputs: see `ocl_msf.inference.sources.find_pictures`.
        out: a new folder, or one of an earlier call with the same model and fit.
        batch_size: pictures at a time.
        device: where the model computes; by default a GPU if there is one.
        fit: see `Model.forward`.

    Raises:
        DataError: there is no such model or device, nothing could be read, or the folder holds something else or cannot
            be written.
    """
    unread: List[str] = []

    def report(message: str) -> None:
        unread.append(message)
        tqdm.write(message, file=sys.stderr)

    pictures = find_pictures(inputs, report, out)
    model = _to(load(source), device)
    record = {"model": str(source), "weights": _fingerprint(model), "fit": fit}
    known = _open_folder(out, record)
    named = _name(pictures, known)
    missing = [(key, picture) for key, picture in named if not _is_done(out, key, picture, known)]
    kept = len(named) - len(missing)
    done = 0
    with tqdm(total=len(named), initial=kept, desc="predict", unit=" pictures") as bar, ThreadPoolExecutor(
        THREADS
    ) as pool:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            readable = _read(batch, pool, report)
            if readable:
                if not done:
                    _write(out / RECORD, encode_json(record, indent=1))
                _find(model, readable, fit, out, pool)
            done += len(readable)
            bar.update(len(batch))
    if not done + kept:
        raise DataError(f"Nothing could be read: {len(unread)} inputs, none of them a picture.")
    _summarize(out)
    return Tally(done, kept, len(unread))


def _to(model: Model, device: Optional[str]) -> Model:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:  # torch's for a wrong name, and for a device that is not there
        reason = str(error).split("\n")[0]
        raise DataError(f"The device {name} cannot be used ({reason}). Choose another one, such as cpu.") from error


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        if isinstance(x, torch.Tensor):
            digest.update(name.encode() + x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _open_folder(out: Path, record: Stamp) -> Dict[str, Stamp]:
    """The pictures of which a folder has slots, by key; an error if it holds something else."""
    path = out / RECORD
    if not path.exists():
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise DataError(f"{out} holds something else. Choose a new folder.")
        return {}
    try:
        earlier = decode_json(path.read_text(encoding="utf-8"))
        differing = [name for name in ("weights", "fit") if earlier[name] != record[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}). Choose a new folder.") from error
    if differing:
        made = f"with other {' and '.join(differing)} ({earlier.get('model')}, {earlier['fit']})"
        raise DataError(f"{out} holds predictions made {made}. Choose a new folder.")
    return {key: _read_part(out, key)[1] for key in _keys(out)}


def _keys(out: Path) -> List[str]:
    folder = out / "slots"
    return sorted(path.relative_to(folder).as_posix()[: -len(path.suffix)] for path in folder.rglob("*.safetensors"))


def _path(out: Path, kind: str, key: str) -> Path:
    return out / kind / f"{key}.{KINDS[kind]}"


def _read_part(out: Path, key: str, slots: bool = False) -> Tuple[Optional[np.ndarray], Stamp]:
    """The slots (t, k, d) of a picture, if they are wanted, and where they come from."""
    path = _path(out, "slots", key)
    try:
        with safe_open(str(path), framework="np") as file:
            return file.get_tensor("slots") if slots else None, decode_json(file.metadata()["picture"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it and run again.") from error


def _stamp(picture: Picture) -> Stamp:
    modified = picture.path.stat().st_mtime_ns if picture.path.exists() else 0
    return {"source": picture.source, "modified": str(modified)}


def _name(pictures: Sequence[Picture], known: Dict[str, Stamp]) -> List[Tuple[str, Picture]]:
    """Give each picture a key of its own, and that of before to one whose source is known."""
    keys = {stamp.get("source"): key for key, stamp in known.items()}
    taken = {key.casefold() for key in known}  # some file systems do not tell cases apart
    named = []
    for picture in pictures:
        key = keys.get(picture.source)
        if key is None:
            names = (f"{picture.name}-{number}" for number in itertools.count(2))
            key = next(name for name in itertools.chain([picture.name], names) if name.casefold() not in taken)
            taken.add(key.casefold())
        named.append((key, picture))
    return named


def _is_done(out: Path, key: str, picture: Picture, known: Dict[str, Stamp]) -> bool:
    return known.get(key) == _stamp(picture) and all(_path(out, kind, key).is_file() for kind in KINDS)


def _read(
    batch: Sequence[Tuple[str, Picture]], pool: ThreadPoolExecutor, report: Callable[[str], None]
) -> List[Tuple[str, Stamp, np.ndarray]]:
    """Those of a batch that can be read, with their stamps."""

    def read(picture: Picture) -> Union[Tuple[Stamp, np.ndarray], DataError]:
        try:
            return _stamp(picture), picture.read()
        except DataError as error:
            return error

    readable = []
    for (key, _), outcome in zip(batch, pool.map(read, [picture for _, picture in batch])):
        if isinstance(outcome, DataError):
            report(str(outcome))
        else:
            readable.append((key, *outcome))
    return readable


def _find(
    model: Model, pictures: Sequence[Tuple[str, Stamp, np.ndarray]], fit: str, out: Path, pool: ThreadPoolExecutor
) -> None:
    """Find the slots of some pictures, and write their files."""
    images = [image[None] if model.description.video else image for _, _, image in pictures]  # videos of one frame
    result = model(images, fit)
    slots = result.slots.float().reshape(len(images), 1, *result.slots.shape[-2:]).cpu().numpy()
    masks = [mask.reshape(mask.shape[-2:]).cpu().numpy() for mask in result.masks]

    def write(number: int) -> None:
        key, stamp, image = pictures[number]
        colors = style.segment_palette()
        mask = Image.fromarray(masks[number])
        mask.putpalette(colors.ravel().tolist())
        _write(_path(out, "masks", key), _to_png(mask))
        _write(_path(out, "overlays", key), _to_png(draw_overlay(image, masks[number], colors)))
        part = {"slots": np.ascontiguousarray(slots[number])}
        metadata = {"picture": encode_json(stamp).decode()}  # one entry: safetensors writes several in any order
        _write(_path(out, "slots", key), save(part, metadata=metadata))

    list(pool.map(write, range(len(pictures))))


def draw_overlay(image: np.ndarray, mask: np.ndarray, colors: np.ndarray) -> Image.Image:
    """A picture under the colours of its slots, with a white line between neighbours.

    Args:
        image: (h, w, 3) uint8.
        mask: (h, w) uint8.
        colors: of each number in the mask, (256, 3) uint8.
    """
    painted = colors[mask]
    painted[:, 1:][mask[:, 1:] != mask[:, :-1]] = 255
    painted[1:][mask[1:] != mask[:-1]] = 255
    return Image.blend(Image.fromarray(image), Image.fromarray(painted), 0.5)


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _summarize(out: Path) -> None:
    """Write what is about all pictures of a folder."""
    keys = _keys(out)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["key", "frame", "row", "source"])
    arrays: List[np.ndarray] = []
    rows = itertools.count()
    for key in keys:
        slots, stamp = _read_part(out, key, slots=True)
        table.writerows([key, frame, next(rows), stamp.get("source")] for frame in range(len(slots)))
        arrays.append(slots)
    _write(out / "slots.safetensors", save({"slots": np.concatenate(arrays)}))
    _write(out / INDEX, text.getvalue().encode())
    _draw_sheet(out, keys[:TILES])


@rc_context(style.STYLE)
def _draw_sheet(out: Path, keys: Sequence[str]) -> None:
    columns = min(COLUMNS, len(keys))
    lines = -(-len(keys) // columns)
    figure = style.new_figure(2 * columns, 2.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    for axis, key in zip(axes, keys):
        with Image.open(_path(out, "overlays", key)) as overlay:
            overlay.thumbnail((SIDE, SIDE))
            style.show(axis, np.asarray(overlay), below=key[-32:].replace("$", r"\$"))
    style.save(figure, out / CONTACT)
