import io

import numpy as np
import pytest

from ocl_msf.data.tfrecord import (
    encode_example,
    masked_crc32c,
    parse_example,
    read_record,
    record_offsets,
    write_records,
)
from ocl_msf.files import DataError

GOLDEN = bytes.fromhex(
    "440000000000000043592e9a0a420a0c0a016112070a050a01780a000a110a0162120c120a0a08"
    "0000803f000000bf0a160a016312111a0f0a0d03ac02ffffffffffffffffff010a070a01641202"
    "1a0035c9a466"
)
FEATURES = {"a": [b"x", b""], "b": np.array([1, -0.5]), "c": np.array([3, 300, -1]), "d": np.array([], int)}


def plain_crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def write(path, payloads):
    with open(path, "wb") as file:
        write_records(file, payloads)
    return path


def test_the_golden_record_is_written_and_read(tmp_path):
    file = io.BytesIO()
    write_records(file, [encode_example(FEATURES)])
    assert file.getvalue() == GOLDEN
    path = tmp_path / "golden"
    path.write_bytes(GOLDEN)
    assert record_offsets(path) == [0]
    found = parse_example(read_record(path, 0), FEATURES)
    assert found["a"] == [b"x", b""]
    assert found["b"].tolist() == [1, -0.5] and found["b"].dtype == np.float32
    assert found["c"].tolist() == [3, 300, -1] and found["c"].dtype == np.int64
    assert found["d"].tolist() == []


def test_only_wanted_features_are_decoded():
    # The unwanted feature is no valid message: decoding it would fail.
    broken = bytes.fromhex("0a070a017a1202ffff")
    payload = encode_example(FEATURES)
    mixed = bytes([0x0A, payload[1] + len(broken)]) + broken + payload[2:]
    assert parse_example(mixed, {"c", "absent"})["c"].tolist() == [3, 300, -1]
    assert set(parse_example(mixed, {"c", "absent"})) == {"c"}
    with pytest.raises(ValueError):
        parse_example(mixed, {"z"})


def test_numbers_may_be_unpacked():
    # Feature{int64_list: 3, 300 one by one, then 5 and 6 packed}
    values = bytes.fromhex("0803 08ac02 0a020506")
    feature = bytes([0x1A, len(values)]) + values
    entry = b"\x0a\x01c\x12" + bytes([len(feature)]) + feature
    example = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(example, {"c"})["c"].tolist() == [3, 300, 5, 6]


def test_unpacked_floats():
    values = b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    feature = bytes([0x12, len(values)]) + values
    entry = b"\x0a\x01f\x12" + bytes([len(feature)]) + feature
    example = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(example, {"f"})["f"].tolist() == [1.5, -2]


def test_records_are_found_by_their_offsets(tmp_path):
    payloads = [b"first", b"", bytes(1000), b"last"]
    path = write(tmp_path / "file", payloads)
    assert [read_record(path, offset) for offset in record_offsets(path)] == payloads
    assert record_offsets(write(tmp_path / "empty", [])) == []


@pytest.mark.parametrize("kept", [3, 11, 12, 20, 36, 40])
def test_a_cut_off_file_is_named(tmp_path, kept):
    path = write(tmp_path / "shard-7", [b"five!", b"second record"])  # 21 and 29 bytes
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="shard-7 is cut off in record"):
        record_offsets(path)


def test_damage_is_found_by_the_checksums(tmp_path):
    whole = write(tmp_path / "whole", [b"content"]).read_bytes()
    path = tmp_path / "shard-7"
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError, match="shard-7 is damaged at byte 0"):
        record_offsets(path)
    for position in range(12, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert record_offsets(path) == [0]
        with pytest.raises(ValueError, match="checksum"):
            read_record(path, 0)


def test_the_mask_turns_and_adds():
    crc = plain_crc32c(b"abc")
    bits = f"{crc:032b}"
    assert masked_crc32c(b"abc") == (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32


def test_mutated_messages_are_parsed_or_refused():
    payload = encode_example(FEATURES)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        mutated = bytearray(payload)
        for position in rng.integers(0, len(payload), rng.integers(1, 4)):
            mutated[position] = rng.integers(0, 256)
        try:
            parse_example(bytes(mutated[: rng.integers(1, len(payload) + 1)]), FEATURES)
        except ValueError:
            refused += 1
    assert 100 < refused < 500
