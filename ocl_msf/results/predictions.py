"""The folder of predictions, which `ocl_msf.results.predict` fills.

Layout, where the key of a picture or video is its name in what was given, with -2 and so on if that is taken:

    masks/<key>.png         palette image: the slot of every pixel, 255 where the model was not shown the picture
    overlays/<key>.png      the picture, with its slots in the same colours
    slots/<key>.safetensors `slots` (t, k, d) float32, t = 1; written last, so that a picture which has it is done
    slots.safetensors       `slots` (n, k, d) of all pictures and frames, and index.csv the key, frame, row and source
    contact.png             the first overlays
    predict.json            what made all this

A video of t frames has masks/<key>/<frame>.png, overlays/<key>.mp4 and some of its frames, overlays/<key>/<frame>.png.
Until it is done, its slots are in parts/<key>.
"""

import contextlib
import csv
import io
import itertools
import math
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from matplotlib import rc_context
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ocl_msf.files import DataError, decode_json, encode_json, replacing
from ocl_msf.inference.sources import Source, Video
from ocl_msf.results import style

RECORD, INDEX, CONTACT, SLOTS = "predict.json", "index.csv", "contact.png", "slots.safetensors"
TILES, COLUMNS, SIDE = 24, 6, 320  # of the contact sheet; the side of a picture in pixels
CHUNK = 1024  # frames whose slots are held in memory
SUFFIXES = {"masks": ".png", "overlays": ".png", "slots": ".safetensors"}

Stamp = Dict[str, str]
Tensors = Mapping[str, np.ndarray]


def stamp_of(source: Source) -> Stamp:
    """What tells a picture or video from one that has changed."""
    modified = source.path.stat().st_mtime_ns if source.path.exists() else 0
    return {"source": source.source, "modified": str(modified)}


class Files:
    """The files of a folder of predictions, for the layout see the module; several processes can write some of them.

    Args:
        folder: where they are.
        record: what makes the predictions: model, weights and fit.
    """

    def __init__(self, folder: Path, record: Stamp):
        self.folder, self.record = folder, record

    def path(self, kind: str, key: str) -> Path:
        """The file of a picture: of its masks, overlays or slots; of a video, without suffix, the folder."""
        return self.folder / kind / f"{key}{SUFFIXES[kind]}"

    def path_of_frame(self, kind: str, key: str, frame: int) -> Path:
        """The file of a frame: of its masks or overlays."""
        return self.folder / kind / key / f"{frame:08d}.png"

    def path_of_overlays(self, key: str) -> Path:
        """The video with the overlays of a video."""
        return self.folder / "overlays" / f"{key}.mp4"

    def begin(self) -> None:
        """Say in the folder what it is for."""
        if not (self.folder / RECORD).exists():
            write(self.folder / RECORD, encode_json(self.record, indent=1))

    def write_slots(self, key: str, slots: np.ndarray, stamp: Stamp) -> None:
        """Write the slots (t, k, d) of a picture or video, which is done with them."""
        _write_slots(self.path("slots", key), slots.shape, [slots], stamp)

    def remove(self, key: str) -> None:
        """Remove all that there is of a video."""
        for kind in ("slots", "masks", "overlays"):
            with contextlib.suppress(FileNotFoundError):
                self.path(kind, key).unlink()
        with contextlib.suppress(FileNotFoundError):
            self.path_of_overlays(key).unlink()
        for kind in ("masks", "overlays", "parts"):
            shutil.rmtree(self.folder / kind / key, ignore_errors=True)

    def write_part(self, key: str, first: int, slots: np.ndarray, state: Tensors, stamp: Stamp) -> None:
        """Write slots (t, k, d) of a video from a frame on, and what its model goes on with after them."""
        content = save({"slots": slots, **{f"state.{name}": x for name, x in state.items()}}, metadata=_metadata(stamp))
        write(self.folder / "parts" / key / f"{first:08d}.safetensors", content)

    def resume(self, key: str, stamp: Stamp) -> Tuple[int, Dict[str, np.ndarray]]:
        """How many frames of a video are there, and what its model goes on with; what is of another one is removed."""
        count, state = 0, {}
        for path in self._parts(key):
            with _open(path) as (slots, its), safe_open(str(path), framework="np") as file:
                if its != stamp:
                    count = 0
                    break
                count += slots.get_shape()[0]
                state = {name[len("state.") :]: file.get_tensor(name) for name in file.keys() if name != "slots"}
        if not count:
            self.remove(key)
            return 0, {}
        return count, state

    def finish(self, key: str, stamp: Stamp) -> None:
        """Join the slots of a video."""
        paths = self._parts(key)
        shapes = [_shape(path) for path in paths]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        _write_slots(self.path("slots", key), shape, itertools.chain.from_iterable(map(_chunks, paths)), stamp)
        shutil.rmtree(self.folder / "parts" / key)

    def _parts(self, key: str) -> List[Path]:
        return sorted((self.folder / "parts" / key).glob("*.safetensors"))


class Predictions(Files):
    """A folder of predictions; for its layout see the module.

    Args:
        folder: a new one, or one of an earlier call.
        record: what makes the predictions: model, weights and fit.

    Attributes:
        known: where the slots that it holds come from, by key.
        begun: the same of videos that were interrupted.

    Raises:
        DataError: it holds something else, or predictions of another model or fit.
    """

    def __init__(self, folder: Path, record: Stamp):
        super().__init__(folder, record)
        self.known: Dict[str, Stamp] = {}
        self.begun: Dict[str, Stamp] = {}
        path = folder / RECORD
        self.is_new, self.was_there = not path.exists(), folder.exists()
        if self.is_new:
            if self.was_there and not (folder.is_dir() and not any(folder.iterdir())):
                raise DataError(f"{folder} holds something else. Choose a new folder.")
            return
        try:
            earlier = decode_json(path.read_text(encoding="utf-8"))
            differing = [name for name in ("weights", "fit") if earlier[name] != record[name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}). Choose a new folder.") from error
        if differing:
            made = f"with other {' and '.join(differing)} ({earlier.get('model')}, {earlier['fit']})"
            raise DataError(f"{folder} holds predictions made {made}. Choose a new folder.")
        self.known = {key: _stamp(self.path("slots", key)) for key in self._keys()}
        parts = folder / "parts"
        self.begun = {path.parent.relative_to(parts).as_posix(): _stamp(path) for path in parts.rglob("*.safetensors")}

    def name(self, sources: Sequence[Source]) -> List[Tuple[str, Source]]:
        """Give each picture and video a key of its own, and that of before to one whose source is known."""
        earlier = {**self.begun, **self.known}
        keys = {stamp.get("source", ""): key for key, stamp in earlier.items()}
        taken = {key.casefold() for key in earlier}  # some file systems do not tell cases apart
        of_videos = {key.casefold() for key in earlier if key in self.begun or self.path_of_overlays(key).exists()}
        folders = {str(parent) for key in taken for parent in Path(key).parents}

        def new_key(source: Source) -> str:
            names = itertools.chain([source.name], (f"{source.name}-{number}" for number in itertools.count(2)))
            is_video = isinstance(source, Video)  # whose frames are in a folder of its name
            for key in names:
                folded = key.casefold()
                parents = {str(parent) for parent in Path(folded).parents}
                if not (folded in taken or parents & of_videos or (is_video and folded in folders)):
                    break
            taken.add(folded)
            folders.update(parents)
            of_videos.update([folded] if is_video else [])
            return key

        return [(keys.get(source.source) or new_key(source), source) for source in sources]

    def is_done(self, key: str, source: Source) -> bool:
        """Whether all files of a picture or video are there, and it has not changed."""
        if self.known.get(key) != stamp_of(source):
            return False
        if not isinstance(source, Video):
            return all(self.path(kind, key).is_file() for kind in SUFFIXES)
        with _open(self.path("slots", key)) as (slots, _):
            count = slots.get_shape()[0]
        masks = sum(1 for _ in (self.folder / "masks" / key).glob("*.png"))
        return masks == count and self.path_of_overlays(key).is_file()

    def abandon(self) -> None:
        """Remove a new folder in which nothing was done."""
        done = itertools.chain(*((self.folder / kind).rglob("*.safetensors") for kind in ("slots", "parts")))
        if self.is_new and not any(done):
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.was_there:
                self.folder.mkdir(exist_ok=True)

    def summarize(self) -> None:
        """Write what is about all pictures and videos, holding the slots of few of them in memory."""
        for folder in sorted([self.folder / "parts", *(self.folder / "parts").rglob("*")], reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        paths = {key: self.path("slots", key) for key in self._keys()}
        shapes = [_shape(path) for path in paths.values()]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        _write_slots(self.folder / SLOTS, shape, itertools.chain.from_iterable(map(_chunks, paths.values())))
        rows = itertools.count()
        with replacing(self.folder / INDEX) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
            table = csv.writer(text)
            table.writerow(["key", "frame", "row", "source"])
            for (key, path), its in zip(paths.items(), shapes):
                source = _stamp(path).get("source")
                table.writerows([key, frame, next(rows), source] for frame in range(its[0]))
        self._draw_sheet(list(paths))

    def _keys(self) -> List[str]:
        folder = self.folder / "slots"
        return sorted(
            path.relative_to(folder).as_posix()[: -len(path.suffix)] for path in folder.rglob("*.safetensors")
        )

    @rc_context(style.STYLE)
    def _draw_sheet(self, keys: Sequence[str]) -> None:
        tiles = list(itertools.islice(self._tiles(keys), TILES))
        columns = min(COLUMNS, len(tiles))
        lines = -(-len(tiles) // columns)
        figure = style.new_figure(2 * columns, 2.2 * lines)
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(tiles) :]:
            axis.set_axis_off()
        for axis, (label, path) in zip(axes, tiles):
            with Image.open(path) as overlay:
                overlay.thumbnail((SIDE, SIDE))
                style.show(axis, np.asarray(overlay), below=label[-32:].replace("$", r"\$"))
        style.save(figure, self.folder / CONTACT)

    def _tiles(self, keys: Sequence[str]) -> Iterator[Tuple[str, Path]]:
        for key in keys:
            if self.path("overlays", key).exists():
                yield key, self.path("overlays", key)
                continue
            for path in sorted((self.folder / "overlays" / key).glob("*.png")):
                yield f"{key} {int(path.stem)}", path


def write(path: Path, content: bytes) -> None:
    """Write a file; it appears when it is complete.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def _metadata(stamp: Stamp) -> Dict[str, str]:
    return {"picture": encode_json(stamp).decode()}  # one entry: safetensors writes several in any order


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Tuple[Any, Stamp]]:
    """The slots (t, k, d) of a picture or video, to be read in slices, and where they come from."""
    try:
        with safe_open(str(path), framework="np") as file:
            yield file.get_slice("slots"), decode_json(file.metadata()["picture"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it and run again.") from error


def _stamp(path: Path) -> Stamp:
    with _open(path) as (_, stamp):
        return stamp


def _shape(path: Path) -> Tuple[int, ...]:
    with _open(path) as (slots, _):
        return tuple(slots.get_shape())


def _chunks(path: Path) -> Iterator[np.ndarray]:
    with _open(path) as (slots, _):
        count = slots.get_shape()[0]
        for start in range(0, count, CHUNK):
            yield slots[start : min(start + CHUNK, count)]


def _write_slots(path: Path, shape: Sequence[int], chunks: Iterable[np.ndarray], stamp: Optional[Stamp] = None) -> None:
    """Write `slots` in safetensors' format, whose library wants all of them in memory."""
    header = {"slots": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}}
    text = encode_json({**({"__metadata__": _metadata(stamp)} if stamp else {}), **header})
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, "<f4").tobytes())
