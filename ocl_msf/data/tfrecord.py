"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A file is a sequence of records: the payload's length (u64), its checksum (u32), the payload, and its checksum
(u32), all little-endian; a checksum is a CRC-32C, rotated right by 15 bits plus 0xA282EAD8. A payload is the
protocol buffer `Example{1: Features{1: map of string to Feature}}`, where a Feature is a list of byte strings
(field 1), 32-bit floats (field 2) or 64-bit integers (field 3).

Records are read by hand, because the package `tfrecord` (1.14) skips the checksums and does not tell where a record
begins. The messages are described here, because only TensorFlow ships `tf.train.Example`.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO, Collection, Dict, Iterable, List, Sequence, Union

import numpy as np
from crc32c import crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from ocl_msf.files import DataError

Feature = Union[List[bytes], np.ndarray]

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord files hold it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(file: BinaryIO, payloads: Iterable[bytes]) -> None:
    """Append records to a binary file."""
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        file.write(length + _FOOTER.pack(masked_crc32c(length)))
        file.write(payload + _FOOTER.pack(masked_crc32c(payload)))


def record_offsets(path: Path) -> List[int]:
    """The byte at which each record of a file begins; reads only the lengths.

    Raises:
        DataError: the file is cut off, a length is damaged, or it cannot be read.
    """
    offsets: List[int] = []
    offset = 0
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
    """The payload of the record at an offset of a file.

    Raises:
        ValueError: it does not fit its checksum or is cut off.
        DataError: the file cannot be read.
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


# The fields of each message, numbered from 1: name, type and whether it is repeated. An Entry belongs to the map of
# Features, here a list to keep its order; its value, a Feature, stays serialised, so that only wanted ones are decoded.
_MESSAGES = {
    "BytesList": [("value", "BYTES", True)],
    "FloatList": [("value", "FLOAT", True)],
    "Int64List": [("value", "INT64", True)],
    "Feature": [
        ("bytes_list", "BytesList", False),
        ("float_list", "FloatList", False),
        ("int64_list", "Int64List", False),
    ],
    "Entry": [("key", "BYTES", False), ("value", "BYTES", False)],
    "Features": [("feature", "Entry", True)],
    "Example": [("features", "Features", False)],
}


def _message_class(name: str) -> Any:
    """The class of one of `_MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(name="ocl_msf/example.proto", package="ocl_msf", syntax="proto3")
    for title, fields in _MESSAGES.items():
        described = file.message_type.add(name=title)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            added = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in _MESSAGES:
                added.type, added.type_name = added.TYPE_MESSAGE, f".ocl_msf.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindMessageTypeByName(f"ocl_msf.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)  # protobuf before 4.22


_Example, _Feature = _message_class("Example"), _message_class("Feature")


def parse_example(payload: bytes, wanted: Collection[str]) -> Dict[str, Feature]:
    """The wanted features of a serialised tf.train.Example; others are skipped without being decoded.

    Returns:
        By key, those that the message has: a list of bytes, an array (n,) float32, or an array (n,) int64.

    Raises:
        ValueError: the payload is no such message.
    """
    try:
        entries = _Example.FromString(payload).features.feature
        values = {entry.key.decode("utf-8", "replace"): entry.value for entry in entries}
        parsed = {key: _Feature.FromString(values[key]) for key in wanted if key in values}
    except message.DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    features: Dict[str, Feature] = {}
    for key, feature in parsed.items():
        if feature.HasField("bytes_list"):
            features[key] = list(feature.bytes_list.value)
        if feature.HasField("float_list"):
            features[key] = np.array(feature.float_list.value, np.float32)
        if feature.HasField("int64_list"):
            features[key] = np.array(feature.int64_list.value, np.int64)
    return features


def encode_example(features: Dict[str, Union[Sequence[bytes], np.ndarray]]) -> bytes:
    """Serialise a tf.train.Example.

    Args:
        features: by key, a list of bytes, or an array of floats or integers, which is flattened row by row.
    """
    example = _Example()
    for key, values in features.items():
        feature = _Feature()
        if not isinstance(values, np.ndarray):
            kind, content = feature.bytes_list, values
        else:
            kind = feature.float_list if values.dtype.kind == "f" else feature.int64_list
            content = values.ravel().tolist()
        kind.SetInParent()
        kind.value.extend(content)
        example.features.feature.add(key=key.encode(), value=feature.SerializeToString())
    return example.SerializeToString()
