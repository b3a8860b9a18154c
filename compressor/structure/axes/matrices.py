"""What operators on whole matrices, spectra, complex numbers and more than two tensors do to the axes they meet."""

from torch import Tensor

from compressor.structure.axes.axis import Axis, chain, join, lock, product, regroup
from compressor.structure.axes.calls import Call, Dims, Rule, adding_to, broadcast

MATRICES: dict[str, Rule] = {}
_rule = adding_to(MATRICES)

_SPECTRUM = "a Fourier transform runs over it"
_WHOLE = "a function of whole matrices runs over it"
_OF_MATRICES = (
    "linalg_inv_ex",
    "linalg_pinv",
    "linalg_qr",
    "linalg_lu",
    "linalg_lu_factor_ex",
    "linalg_ldl_factor_ex",
    "linalg_cholesky_ex",
    "cholesky_solve",
    "cholesky_inverse",
    "linalg_householder_product",
    "linalg_matrix_exp",
    "linalg_eig",
    "linalg_eigvals",
    "_linalg_eigh",
    "_linalg_svd",
    "_linalg_det",
    "_linalg_slogdet",
    "_linalg_solve_ex",
    "linalg_solve_triangular",
    "triangular_solve",
    "linalg_lstsq",
)
_PARTS = "its positions are real and imaginary parts"


@_rule("_trilinear")
def _trilinear(call: Call) -> Dims:
    # Three tensors, each with dimensions of size 1 put in, multiplied and summed: bilinear layers.
    every: list[Dims] = []
    for number in ("1", "2", "3"):
        dims = list(call.dims(f"i{number}"))
        for dim in sorted(call[f"expand{number}"]):
            dims.insert(dim, Axis(1))
        every.append(dims)
    whole = broadcast(every, [max(axes, key=lambda axis: axis.size).size for axes in zip(*every, strict=True)], join)
    for number in ("1", "2", "3"):
        tensor = call[f"i{number}"]
        own = [dim for dim in range(len(whole)) if dim not in call[f"expand{number}"]]
        made = [place for place, dim in enumerate(own) if dim not in call["sumdim"]]
        if made and not call.computed(tensor):
            call.made_by(tensor, made[0])
    return [axis for dim, axis in enumerate(whole) if dim not in call["sumdim"]]


@_rule("_cdist_forward")
def _distances(call: Call) -> Dims:
    # Coordinates that are zero on both sides add nothing to a distance, in any norm.
    *batch, rows, coordinates = call.dims("x1")
    *other, columns, too = call.dims("x2")
    join(coordinates, too)
    for tensor, dim in ((call["x2"], call["x2"].ndim - 2), (call["x1"], call["x1"].ndim - 2)):
        if not call.computed(tensor):
            call.made_by(tensor, dim)
    lead = broadcast([batch, other], call.shape()[:-2], join)
    return [*lead, rows, columns]


@_rule("linalg_cross")
def _cross(call: Call) -> Dims:
    dims = broadcast([call.dims("self"), call.dims("other")], call.shape(), join)
    call.lock(dims[call["dim"] % len(dims)], "a vector product runs over it")
    return dims


@_rule("addr")
def _addr(call: Call) -> Dims:
    dims = [call.dims("vec1")[0], call.dims("vec2")[0]]
    return broadcast([dims, call.dims("self")], call.shape(), join)


@_rule("block_diag")
def _block_diagonal(call: Call) -> Dims:
    blocks: list[Dims] = []
    for tensor in call["tensors"]:
        dims = list(call.dims_of(tensor))
        blocks.append([*[Axis(1)] * (2 - len(dims)), *dims])
    return [chain([rows for rows, _ in blocks]), chain([columns for _, columns in blocks])]


@_rule("channel_shuffle", "native_channel_shuffle")
def _shuffle(call: Call) -> Dims:
    *lead, channels = call.dims("self")[:2]
    counter, inner = regroup([channels], [call["groups"], channels.size // call["groups"]])
    lock(counter, "it counts the groups of a shuffle")
    return [*lead, product([inner, counter]), *call.dims("self")[2:]]


@_rule("rot90")
def _rotated(call: Call) -> Dims:
    dims = list(call.dims("self"))
    one, two = (dim % len(dims) for dim in call["dims"])
    for dim in (one, two):
        call.lock(dims[dim], "its positions are shifted or reversed")
    if call["k"] % 2:
        dims[one], dims[two] = dims[two], dims[one]
    return dims


@_rule("as_strided")
def _strided(call: Call) -> Dims:
    for axis in call.dims("self"):
        call.lock(axis, "it is read by its place in memory (as_strided)")
    return [Axis(size, "it is read by its place in memory (as_strided)") for size in call.shape()]


@_rule("bucketize", "searchsorted")
def _buckets(call: Call) -> Dims:
    borders = call["boundaries" if call.name == "bucketize" else "sorted_sequence"]
    value = call["self"]
    dims = call.dims_of(value) if isinstance(value, Tensor) else []
    for axis in (*call.dims_of(borders), *(dims if borders.ndim > 1 else ())):
        call.lock(axis, "values are sorted into it")
    return dims


@_rule("_embedding_bag", "_embedding_bag_forward_only")
def _bags(call: Call) -> list[Dims]:
    rows, features = call.dims("weight")
    for tensor in call.tensors():
        if tensor is not call["weight"]:
            for axis in call.dims_of(tensor):
                call.lock(axis, "it counts what is looked up")
    call.lock(rows, "its rows are looked up")
    bags = [Axis(call.shape()[0], "it counts bags"), features]
    return [bags, *([Axis(size, "it counts bags") for size in shape] for shape in call.shapes()[1:])]


@_rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _transform(call: Call) -> Dims:
    dims = list(call.dims("self"))
    for dim in call["dim"]:
        number = dim % len(dims)
        call.lock(dims[number], _SPECTRUM)
        if call.shape()[number] != dims[number].size:
            dims[number] = Axis(call.shape()[number], _SPECTRUM)
    return dims


@_rule("view_as_real", "view_as_complex")
def _complex_view(call: Call) -> Dims:
    dims = list(call.dims("self"))
    if call.name == "view_as_real":
        return [*dims, Axis(2, _PARTS)]
    call.lock(dims[-1], _PARTS)
    return dims[:-1]


@_rule(*_OF_MATRICES)
def _of_matrices(call: Call) -> list[Dims]:
    lead: Dims = []
    for tensor in call.tensors():
        dims = call.dims_of(tensor)
        for axis in dims[-2:]:
            call.lock(axis, _WHOLE)
        lead = max(lead, dims[:-2], key=len)
    found = []
    for shape in call.shapes():
        fits = len(shape) >= len(lead) and all(axis.size == size for axis, size in zip(lead, shape, strict=False))
        kept = lead if fits else []
        found.append([*kept, *(Axis(size, _WHOLE) for size in shape[len(kept) :])])
    return found
