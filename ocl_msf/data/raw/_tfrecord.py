"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A file is a sequence of records: the payload's length (u64), its checksum (u32), the payload, and its checksum
(u32), all little-endian; a checksum is a CRC-32C, rotated right by 15 bits plus 0xA282EAD8. A payload is the
protocol buffer `Example{1: Features{1: map of string to Feature}}`, where a Feature is a list of byte strings
(field 1), 32-bit floats (field 2) or 64-bit integers (field 3).
"""

import functools
import struct
from pathlib import Path
from typing import BinaryIO, Collection, Dict, Iterable, Iterator, List, Sequence, Tuple, Union

import numpy as np

from ocl_msf.files import DataError

Feature = Union[List[bytes], np.ndarray]

_POLYNOMIAL = 0x82F63B78
_BLOCK = 256  # bytes that every lane of the checksum takes
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # kinds of Feature


# --- checksums


@functools.lru_cache(maxsize=None)
def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def _apply(tables: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A linear map of 32 bits, given by its values (4, 256) for each byte of a state."""
    first, second, third, last = (table[(states >> 8 * i) & 255] for i, table in enumerate(tables))
    return first ^ second ^ third ^ last


@functools.lru_cache(maxsize=None)
def _append_zeros(doublings: int) -> np.ndarray:
    """The map of a checksum state to the one after `_BLOCK` * 2^doublings zero bytes, as tables (4, 256)."""
    states = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    if doublings:
        half = _append_zeros(doublings - 1)
        return _apply(half, _apply(half, states))
    for _ in range(_BLOCK):
        states = _byte_table()[states & 255] ^ (states >> 8)
    return states


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of some bytes.

    Blocks are lanes that advance together and are then joined in pairs: a checksum is linear, so that of a
    concatenation is the left one, carried over as many zero bytes as the right one is long, plus the right.
    """
    table = _byte_table()
    if len(data) < 4:
        state = 0xFFFFFFFF
        for byte in data:
            state = int(table[(state ^ byte) & 255]) ^ (state >> 8)
        return state ^ 0xFFFFFFFF
    # The initial state, all ones, enters with the first four bytes; then zeros in front change nothing.
    body = bytes(byte ^ 255 for byte in data[:4]) + data[4:]
    count = -(-len(body) // _BLOCK)
    lanes = np.frombuffer(body.rjust(count * _BLOCK, b"\0"), np.uint8).reshape(count, _BLOCK)
    states = np.zeros(count, np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        states = table[(states & 255) ^ column] ^ (states >> 8)
    doublings = 0
    while len(states) > 1:
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])
        states = _apply(_append_zeros(doublings), states[0::2]) ^ states[1::2]
        doublings += 1
    return int(states[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord files hold it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- records


def write_records(file: BinaryIO, payloads: Iterable[bytes]) -> None:
    """Append records to a binary file."""
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        file.write(length + _FOOTER.pack(masked_crc32c(length)))
        file.write(payload + _FOOTER.pack(masked_crc32c(payload)))


def record_offsets(path: Path) -> List[int]:
    """Where the records of a file begin; reads only their lengths.

    Raises:
        DataError: The file is cut off, a length is damaged, or it cannot be read.
    """
    offsets, offset = [], 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            while offset < size:
                file.seek(offset)
                header = file.read(_HEADER.size)
                if len(header) == _HEADER.size:
                    length, checksum = _HEADER.unpack(header)
                    if masked_crc32c(header[:8]) != checksum:
                        raise DataError(
                            f"{path} is damaged at byte {offset}: a record's length does not fit its "
                            "checksum. Download it again."
                        )
                    stop = offset + _HEADER.size + length + _FOOTER.size
                if len(header) < _HEADER.size or stop > size:
                    raise DataError(f"{path} is cut off in record {len(offsets)}, at byte {size}. Download it again.")
                offsets.append(offset)
                offset = stop
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return offsets


def read_record(path: Path, offset: int) -> bytes:
    """The payload of the record that begins at a byte of a file.

    Raises:
        ValueError: It does not fit its checksum or is cut off.
        DataError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or masked_crc32c(header[:8]) != _HEADER.unpack(header)[1]:
                raise ValueError("its length does not fit its checksum")
            payload = file.read(_HEADER.unpack(header)[0])
            footer = file.read(_FOOTER.size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(footer) < _FOOTER.size or masked_crc32c(payload) != _FOOTER.unpack(footer)[0]:
        raise ValueError("its content does not fit its checksum")
    return payload


# --- messages


def _read_varint(data: bytes, position: int) -> Tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise ValueError("the message ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError("a number has more than 10 bytes")


def _fields(data: memoryview) -> Iterator[Tuple[int, int, Union[int, memoryview]]]:
    """(field number, wire type, value) of a message: an int for a varint, otherwise bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(data, position)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(data):
            raise ValueError("the message is cut off")
        yield number, wire_type, data[position : position + length]
        position += length


def _submessages(data: memoryview, number: int) -> Iterator[memoryview]:
    return (value for n, wire_type, value in _fields(data) if n == number and wire_type == _BYTES)


def _parse_values(kind: int, data: memoryview) -> Feature:
    """One list of a Feature; numbers may be packed or not."""
    fields = [(wire_type, value) for number, wire_type, value in _fields(data) if number == 1]
    if kind == _BYTES_LIST:
        return [bytes(value) for wire_type, value in fields if wire_type == _BYTES]
    if kind == _FLOAT_LIST:
        packed = b"".join(value for wire_type, value in fields if wire_type in (_BYTES, _FIXED32))
        if len(packed) % 4:
            raise ValueError("a list of floats ends within one")
        return np.frombuffer(packed, "<f4")
    numbers: List[int] = []
    for wire_type, value in fields:
        if wire_type == _VARINT:
            numbers.append(value)
        elif wire_type == _BYTES:
            position = 0
            while position < len(value):
                number, position = _read_varint(value, position)
                numbers.append(number)
    return np.array(numbers, np.uint64).astype(np.int64)


def parse_example(payload: bytes, wanted: Collection[str]) -> Dict[str, Feature]:
    """The wanted features of a serialised tf.train.Example; others are skipped without being decoded.

    Returns:
        By key, those that are there: a list of bytes, an array (n,) float32, or an array (n,) int64.

    Raises:
        ValueError: It is no such message.
    """
    features: Dict[str, Feature] = {}
    for container in _submessages(memoryview(payload), 1):
        for entry in _submessages(container, 1):
            keys = [bytes(key).decode("utf-8", "replace") for key in _submessages(entry, 1)]
            key = keys[-1] if keys else ""
            if key not in wanted:
                continue
            for feature in _submessages(entry, 2):
                for kind in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
                    lists = list(_submessages(feature, kind))
                    if lists:
                        features[key] = _parse_values(kind, memoryview(b"".join(lists)))
    return features


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded + bytes([value]))


def _field(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_feature(values: Union[Sequence[bytes], np.ndarray]) -> bytes:
    if not isinstance(values, np.ndarray):
        return _field(_BYTES_LIST, b"".join(_field(1, value) for value in values))
    if values.dtype.kind == "f":
        kind, packed = _FLOAT_LIST, values.astype("<f4").tobytes()
    else:
        kind, packed = _INT64_LIST, b"".join(map(_encode_varint, values.ravel().tolist()))
    return _field(kind, _field(1, packed) if packed else b"")


def encode_example(features: Dict[str, Union[Sequence[bytes], np.ndarray]]) -> bytes:
    """Serialise a tf.train.Example.

    Args:
        features: By key, a list of bytes, or an array of floats or integers, which is flattened row by row.
    """
    entries = (
        _field(1, _field(1, key.encode()) + _field(2, _encode_feature(values))) for key, values in features.items()
    )
    return _field(1, b"".join(entries))
