"""Packed models give their very bytes back, and whatever is not one is refused."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.clustering.codebook_files import with_codebooks
from compressor.errors import PackError, StorageError
from compressor.files.graphs import parse
from compressor.packing import chunk, files, reader, writer
from compressor.packing.files import check, copy_reader, pack, packed_size, unpack
from compressor.packing.layouts import inner_shapes
from compressor.packing.wire import weights_in
from compressor.packing.writer import packed
from compressor.quantization.file.packing import pack_weights

_RNG = np.random.default_rng(0)


def _file(*arrays, nodes=(), tensors=()) -> bytes:
    """An ONNX file with these initializers, which nothing reads."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    held = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(arrays)]
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    graph.initializer.extend([*held, *tensors])
    return helper.make_model(graph).SerializeToString()


def _normal(*shape):
    return _RNG.normal(0, 0.1, shape).astype(np.float32)


def _sparse(*shape):
    return np.where(_RNG.random(shape) < 0.8, 0, _normal(*shape)).astype(np.float32)


def _raw(kind, shape, raw):
    return TensorProto(name="raw", data_type=kind, dims=shape, raw_data=raw)


_FILES = {
    "nothing": _file,
    "an empty weight": lambda: _file(np.zeros((0, 3), np.float32)),
    "int8": lambda: _file(np.clip(np.rint(_RNG.normal(0, 30, (16, 8, 3, 3))), -127, 127).astype(np.int8)),
    "float32": lambda: _file(_normal(40, 30), _normal(7)),
    "zeros": lambda: _file(np.zeros((40, 40), np.float32), np.zeros(3000, np.int8)),
    "sparse": lambda: _file(_sparse(60, 50)),
    "zeros of both signs": lambda: _file(_sparse(60, 50) * _RNG.choice([-1.0, 1.0], (60, 50)).astype(np.float32)),
    "infinities among zeros of both signs": lambda: _file(
        np.tile(np.array([0, -0.0, np.inf, np.nan, 1e-40, 2], "f4"), 60)
    ),
    "few values": lambda: _file(_RNG.choice(_normal(16), (50, 40))),
    "float64": lambda: _file(_RNG.normal(0, 1, (20, 20))),
    "float16": lambda: _file(_normal(30, 30).astype(np.float16)),
    "integers of 16 and 32 bits": lambda: _file(
        _RNG.integers(-500, 500, 600).astype(np.int16), _RNG.integers(-9000, 9000, 300).astype(np.int32)
    ),
    "shapes and masks": lambda: _file(np.arange(500), _RNG.random(300) < 0.5),
    "one number": lambda: _file(np.float32(3.5).reshape(())),
    "bfloat16": lambda: _file(tensors=[_raw(TensorProto.BFLOAT16, [200], _RNG.bytes(400))]),
    "int4, an odd number": lambda: _file(tensors=[_raw(TensorProto.INT4, [5, 13], _RNG.bytes(33))]),
    "a type that nobody knows": lambda: _file(tensors=[_raw(99, [128], _RNG.bytes(64) * 2)]),
    "bytes that are no whole elements": lambda: _file(tensors=[_raw(TensorProto.FLOAT, [100], _RNG.bytes(401))]),
    "the same weight twice": lambda: _file(*[_normal(40, 40)] * 3),
    "hundreds of weights of their own": lambda: _file(
        *[_RNG.choice(_normal(4), 40) for _ in range(200)], *[_RNG.integers(0, 9, 50).astype(np.uint8)] * 150
    ),
    "typed fields": lambda: _file(tensors=[helper.make_tensor("t", 1, [300], _normal(300).tolist())]),
}


@pytest.mark.parametrize("name", _FILES)
def test_the_very_bytes_come_back(name, tmp_path) -> None:
    """Whatever a file holds: what is unpacked is what was packed, and check says so."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_FILES[name]())
    made = pack(path)
    assert made.path == tmp_path / "model.pack"
    assert made.packed_bytes == made.path.stat().st_size == packed_size(path.read_bytes(), most=10**9)
    assert check(made.path, path) == made
    assert unpack(made.path, tmp_path / "back.onnx") == made
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_bytes_in_another_order_come_back(tmp_path) -> None:
    """A file of another writer: fields in an order of its own, unknown ones, and a graph in two parts."""
    data = _file(_normal(30, 30))
    model = onnx.load_from_string(data)
    graph = model.graph.SerializeToString()
    half = onnx.GraphProto(initializer=[numpy_helper.from_array(_normal(20, 20), "later")]).SerializeToString()
    unknown = b"\xfa\x7f\x05hello"  # field 2047, five bytes
    parts = [b"\x3a", _varint(len(graph)), graph, unknown, b"\x3a", _varint(len(half)), half, b"\x08\x0a"]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"".join(parts))
    assert len(weights_in(path.read_bytes())) == 2
    made = pack(path)
    unpack(made.path, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


def test_weights_are_found_wherever_they_lie() -> None:
    """In the graph, in constants of nodes, in branches and in sparse tensors: each range holds the tensor's bytes."""
    inner, constant, sparse = _normal(5, 5), _normal(4, 4), _normal(9)
    branch = helper.make_graph([], "b", [], [], [numpy_helper.from_array(inner, "inner")])
    nodes = [
        helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(constant)),
        helper.make_node(
            "Constant",
            [],
            ["s"],
            sparse_value=helper.make_sparse_tensor(
                numpy_helper.from_array(sparse, "v"), numpy_helper.from_array(np.arange(9)), [20]
            ),
        ),
    ]
    outer = _normal(3, 3)
    data = _file(outer, nodes=nodes)
    found = [data[one.offset : one.offset + one.length] for one in weights_in(data) if one.kind == TensorProto.FLOAT]
    assert sorted(found) == sorted(array.tobytes() for array in (inner, inner, constant, sparse, outer))


def test_numbers_of_few_bits_have_the_rows_of_their_weights() -> None:
    """Weights of 4 bits and codebooks lie in one tensor of bytes: their shapes are read off the nodes behind it."""
    weights = [_RNG.integers(-8, 8, (6, 5, 3, 3)).astype(np.int8), _RNG.integers(-8, 8, (7, 9)).astype(np.int8)]
    model = pack_weights(parse(_file(*weights)), {"w0": 4, "w1": 4})
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.UINT8}
    assert [shapes for name, shapes in inner_shapes(model).items() if name in stored] == [((6, 5, 9), (7, 9, 1))]
    book, _ = with_codebooks(_used(_RNG.choice(_normal(16), (40, 50))))
    assert list(inner_shapes(parse(book)).values()) == [((40, 50, 1),)]


def _used(weight) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[0]])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[1]])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w0"], ["y"])], "g", [value], [out])
    graph.initializer.append(numpy_helper.from_array(weight, "w0"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_long_files_are_packed_in_chunks(tmp_path, monkeypatch) -> None:
    """A file of many chunks, with weights longer than one, and a copy of a weight that lies chunks before it."""
    for module in (reader, writer, chunk):
        monkeypatch.setattr(module, "MOST_CHUNK", 4096)
    monkeypatch.setattr(writer, "_MOST_WEIGHT", 2048)
    twice = _normal(20, 20)
    data = _file(twice, _normal(90, 40), np.arange(3000), _sparse(70, 70), twice)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    told = []
    made = pack(path, told=lambda done, total: told.append((done, total)))
    assert sum(done for done, _ in told) == len(data) == told[-1][1]
    assert len(told) > 8
    unpack(made.path, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == data


def test_packed_is_smaller_than_by_general_coders() -> None:
    """Integers whose rows differ in scale: below zlib, LZMA, zstd, and below the entropy of order 0."""
    import lzma

    import zstandard

    scales = 2.0 ** _RNG.uniform(2, 5, (64, 1, 1)) * 2.0 ** _RNG.uniform(-1, 1, (1, 64, 1))
    weight = np.clip(np.rint(_RNG.normal(0, 1, (64, 64, 9)) * scales), -127, 127).astype(np.int8)
    data = _file(weight)
    size = packed_size(data, most=10**9)
    others = [zlib.compress(data, 9), lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), zstandard.compress(data, 19)]
    assert size < min(map(len, others))
    counts = np.bincount(weight.reshape(-1).astype(np.int64) + 128)
    some = counts[counts > 0]
    assert size < -(some * np.log2(some / weight.size)).sum() / 8


def test_the_size_of_a_file_is_found_once(monkeypatch) -> None:
    """The same bytes are not packed a second time, nor is a file that is beyond the limit; others are."""
    asked: list[int] = []
    monkeypatch.setattr(files, "packed", lambda data, told: asked.append(len(data)) or [data])
    monkeypatch.setattr(files, "_sizes", {})
    monkeypatch.setattr(files, "_REMEMBERED", 2)
    assert [packed_size(data, most=3) for data in (b"a", b"a", b"bbbb", b"bb")] == [1, 1, None, 2]
    assert asked == [1, 2]
    assert [packed_size(data, most=3) for data in (b"ccc", b"bb", b"a")] == [3, 2, 1]
    assert asked == [1, 2, 3, 1]


def test_neighbours_that_go_together_are_used() -> None:
    """Filters in which neighbours are alike, as trained ones are: below the entropy of order 0 by a good part."""
    noise = _RNG.normal(0, 24, (96, 96, 11))
    weight = np.clip(np.rint(noise[:, :, :9] + noise[:, :, 1:10] + noise[:, :, 2:]), -127, 127).astype(np.int8)
    counts = np.bincount(weight.reshape(-1).astype(np.int64) + 128)
    some = counts[counts > 0]
    assert packed_size(_file(weight), most=10**9) < -0.98 * (some * np.log2(some / weight.size)).sum() / 8


def test_what_repeats_is_no_longer_than_by_lzma() -> None:
    """A weight in which everything repeats goes to LZMA, which finds it."""
    import lzma

    data = _file(np.tile(_normal(100), 200).reshape(100, 200))
    assert packed_size(data, most=10**9) <= len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) + 64


@pytest.fixture
def small(tmp_path):
    """A packed file with integers, floats, a copy and a graph, in some hundred bytes."""
    path = tmp_path / "small.onnx"
    few = np.clip(np.rint(_RNG.normal(0, 3, (12, 12))), -8, 8).astype(np.int8)
    path.write_bytes(_file(few, _sparse(6, 6), few))
    return pack(path).path


def test_a_damaged_byte_is_never_overlooked(small, tmp_path) -> None:
    """Every byte of a small file, in three ways: each is refused with the one kind of error, and nothing is written."""
    whole = small.read_bytes()
    out, damaged = tmp_path / "out.onnx", tmp_path / "damaged.pack"
    for at in range(len(whole)):
        for change in (0xFF, 0x01, 0x80):
            damaged.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
            with pytest.raises(PackError):
                unpack(damaged, out)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.pack", "small.onnx", "small.pack"]


def test_damage_with_a_right_checksum_is_never_overlooked(small) -> None:
    """The same where somebody mended the checksums: refused, or the very bytes, where a bit has no meaning."""
    whole = small.read_bytes()
    start = len(reader.MAGIC) + 45
    wanted = _unpacked(whole)
    same = 0
    for at in range(start + 8, len(whole)):
        for change in (0xFF, 0x01, 0x10):
            body = whole[start + 8 : at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
            frame = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
            try:
                same += _unpacked(whole[:start] + frame + body) == wanted
            except reader.UnpackError:
                continue
            else:
                assert _unpacked(whole[:start] + frame + body) == wanted
    assert same < 10


def _unpacked(data: bytes) -> bytes:
    import io

    target = io.BytesIO()
    reader.unpack_into(io.BytesIO(data), target)
    return target.getvalue()


def test_a_file_that_was_cut_off_is_refused(small, tmp_path) -> None:
    """At every length, and with something behind its end."""
    whole = small.read_bytes()
    cut = tmp_path / "cut.pack"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(PackError):
            check(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(PackError, match="follows"):
        check(cut)


def test_a_bomb_is_refused_before_work(small, tmp_path) -> None:
    """What says that it holds more than the limit, in the file or in a chunk, is not unpacked."""
    with pytest.raises(PackError, match=r"holds [\d,]+ bytes, and at most 100 are unpacked"):
        check(small, most_bytes=100)
    whole = small.read_bytes()
    head = whole[: len(reader.MAGIC) + 1] + (1 << 50).to_bytes(8, "little") + b"\0" * 32
    bomb = tmp_path / "bomb.pack"
    bomb.write_bytes(head + zlib.crc32(head).to_bytes(4, "little") + whole[len(head) + 4 :])
    with pytest.raises(PackError, match="at most"):
        unpack(bomb, tmp_path / "out.onnx")
    body = b"\xff\xff\xff\xff\x0f" + b"\0" * 8  # a chunk of 4 GiB
    with pytest.raises(reader.UnpackError, match="at most"):
        reader.read_chunk(body, lambda *_: b"", 0, 1 << 40)


def test_a_graph_that_swells_is_cut_short() -> None:
    """LZMA of many zeros where few bytes are announced: no more than those are made."""
    swollen, filters = chunk.deflated(bytes(10_000_000))
    with pytest.raises(reader.UnpackError, match="does not hold as much as it says"):
        reader._inflated(swollen, filters, 100)


def test_other_files_are_told_apart(tmp_path) -> None:
    """Another version, another kind of file, no file, a packed one packed again: each says what it is."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_file(_normal(9, 9)))
    made = pack(path).path
    whole = made.read_bytes()
    newer = tmp_path / "newer.pack"
    newer.write_bytes(whole[: len(reader.MAGIC)] + b"\x02" + whole[len(reader.MAGIC) + 1 :])
    with pytest.raises(PackError, match="version 2 of the format, and this reader knows version 1"):
        unpack(newer, tmp_path / "out.onnx")
    with pytest.raises(PackError, match="no packed model"):
        unpack(path, tmp_path / "out.onnx")
    with pytest.raises(PackError, match="no such file"):
        unpack(tmp_path / "nowhere.pack")
    with pytest.raises(PackError, match="a packed model already"):
        pack(made)
    with pytest.raises(StorageError, match="cannot be read"):
        pack(tmp_path / "nowhere.onnx")
    other = tmp_path / "other.onnx"
    other.write_bytes(_file(_normal(9, 9)))
    with pytest.raises(PackError, match="holds another file"):
        check(made, other)
    with pytest.raises(PackError, match="there already"):
        unpack(made)


@pytest.mark.parametrize("link", [False, True])
def test_no_file_is_written_over_itself(link, tmp_path, monkeypatch) -> None:
    """By its own name or by another one of it: the model that was packed, and the pack that was unpacked, stay."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_file(_normal(9, 9)))
    made = pack(path).path
    before = path.read_bytes(), made.read_bytes()
    for work, name in ((pack, path), (unpack, made)):
        out = tmp_path / "link" if link else name
        if link:
            out.unlink(missing_ok=True)
            out.symlink_to(name)
        with pytest.raises(PackError, match=r"onto itself: .* is the same file; name another to write to"):
            work(name, out)
    monkeypatch.setattr("sys.argv", ["reader.py", str(made), str(out)])
    with pytest.raises(SystemExit, match="cannot be unpacked onto itself"):
        reader.main()
    assert (path.read_bytes(), made.read_bytes()) == before
    with pytest.raises(PackError, match="it is a folder, or a device"):
        unpack(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is a text", b"\x00" * 100, b"\x3a\xff\xff\xff\xff\x7f" + b"\0" * 9]
)
def test_what_is_no_onnx_file_is_not_packed(data, tmp_path) -> None:
    """Nothing, a text, zeros, and a graph that ends behind the file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(PackError, match="is no ONNX file"):
        pack(path)
    assert not (tmp_path / "model.pack").exists()


def test_weights_in_other_files_are_refused(tmp_path) -> None:
    """A file whose weights lie beside it is not packed without them; the message says how to bring them in."""
    model = onnx.load_from_string(_file(_normal(20, 20)))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(PackError, match=r"'w0' lies in a file of its own.*onnx\.save"):
        pack(tmp_path / "model.onnx")


def test_the_reader_alone_is_enough(small, tmp_path) -> None:
    """The one file, copied, in a Python that cannot import this package: the same bytes, and one line for damage."""
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    copied = copy_reader(alone / "unpack_model.py")
    blocked = "import sys; sys.modules['compressor'] = None; sys.argv = sys.argv[1:]; import runpy; "
    blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"

    def run(packed_file):
        command = [sys.executable, "-c", blocked, copied, packed_file, alone / "model.onnx"]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=alone)

    assert run(small).returncode == 0
    assert (alone / "model.onnx").read_bytes() == small.with_suffix(".onnx").read_bytes()
    (alone / "model.onnx").unlink()
    (alone / "cut.pack").write_bytes(small.read_bytes()[:-3])
    done = run(alone / "cut.pack")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in alone.iterdir()) == ["cut.pack", "unpack_model.py"]


def test_the_command_line_packs_and_unpacks(tmp_path) -> None:
    """Packed, proved, told in JSON, unpacked elsewhere; what is there already is not overwritten unasked."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_file(_sparse(50, 50)))
    runner = CliRunner()
    done = runner.invoke(app, ["pack", str(path), "--check", "--reader", str(tmp_path / "unpack.py")])
    assert done.exit_code == 0
    assert "byte for byte" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "model.pack")
    assert (tmp_path / "unpack.py").read_bytes() == Path(reader.__file__).read_bytes()
    told = runner.invoke(app, ["unpack", str(tmp_path / "model.pack"), "--check", "--json"])
    assert json.loads(told.stdout)["size_bytes"] == path.stat().st_size
    refused = runner.invoke(app, ["unpack", str(tmp_path / "model.pack")])
    assert refused.exit_code == 1
    assert "there already" in refused.stderr
    back = runner.invoke(app, ["unpack", str(tmp_path / "model.pack"), "--out", str(tmp_path / "back.onnx"), "-q"])
    assert back.exit_code == 0
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_packing_says_how_many_bytes_are_done() -> None:
    """Parts in order: the header first, then one for every chunk."""
    data = _file(_normal(30, 30))
    parts = list(packed(data))
    assert [len(parts), len(parts[0])] == [2, len(reader.MAGIC) + 45]
