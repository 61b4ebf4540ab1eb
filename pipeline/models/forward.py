"""The ways to run a program on a device: PyTorch as it is, compiled by Inductor, or converted to OpenVINO."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import shutil
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.bundle import Bundle
from pipeline.models.program import Program
from pipeline.models.wide import in_parts

ENGINES = ("eager", "compiled", "openvino")
ANY_SHAPE = ("eager", "openvino")  # the engines that are not built for one shape
CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")
IN_BF16 = 0.05  # of an int8 network's work
SHAPES_AT_ONCE = 64  # that one process may compile for: Dynamo counts every program of every scene
Forward = Callable[..., torch.Tensor]  # of what `program_inputs` gives: logits


def missing(engine: str, device: str) -> str | None:
    """What this machine lacks to run an engine, as a person would say it; None where it can."""
    if engine == "compiled" and (lack := _missing_compiler(device)):
        return f"no {lack}: nothing is compiled"
    if engine == "openvino" and device != "cpu":
        return "OpenVINO is for CPUs here"
    if engine == "openvino" and not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        return "OpenVINO is not installed (pip install 'tilewright[openvino]')"
    return None


def _missing_compiler(device: str) -> str | None:
    """Inductor's kernels for a CPU are C++; for a GPU Triton builds what starts them from C. Both include Python.h."""
    variable, *names = ("CXX", "g++", "clang++") if device == "cpu" else ("CC", "gcc", "clang")
    if not any(map(shutil.which, [os.environ.get(variable, names[0]), *names])):
        return f"{'C++' if device == 'cpu' else 'C'} compiler (install {names[0]})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (install python3-dev)"
    return None


def build_forward(bundle: Bundle, device: str, engine: str, precision: str, network: str | bytes | None = None) -> Forward:
    """A callable that runs the bundle's network: on any inputs, or on those of one shape by an engine outside ANY_SHAPE.

    `network` is the quantised one for int8, a file or its bytes.
    Raises Refused where this machine cannot run the engine.
    """
    lack = missing(engine, device)
    if lack:
        raise Refused(f"this was planned for the engine {engine}, and here is {lack}: install it, or start anew with --fresh")
    if engine == "openvino":
        return _openvino(network if isinstance(network, bytes) else storage.read(storage.place_of(network or converted(bundle))), precision)
    program = Program(bundle.network(), precision).eval().to(device)
    return _compiled(program) if engine == "compiled" else program


def _compiled(program: Program) -> Forward:
    """Compiled at its first call, from Inductor's cache on disk where that has it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.cache_folder() / "inductor"))
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.freezing = True  # weights are constants: they are packed once for the convolutions
    dynamo.recompile_limit = SHAPES_AT_ONCE
    run = torch.compile(program, dynamic=False, fullgraph=True)

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():  # Inductor does not freeze in inference mode
            return run(*inputs)

    return forward


def converted(bundle: Bundle) -> Path:
    """The bundle's network in OpenVINO's format, fp32, made once a user and kept in the cache folder.

    Raises Refused where OpenVINO cannot convert it.
    """
    path = storage.cache_folder() / "openvino" / f"{bundle.model_id}.zip"
    if not path.exists():
        storage.create(path, _archived(_convert(bundle)))
    return path


def quantised(bundle: Bundle, samples: Iterable[Sequence[torch.Tensor]]) -> bytes:
    """The network in int8, quantised by what `samples` show of its activations: what the file of one holds.

    Classes that differ from fp32, fcn_resnet50 and the demo's U-Net: 2.1 % and 2.0 % as NNCF does it by default; 0.8 % and
    1.9 % with activations that keep the whole range that was seen, not its mean over the samples; 0.5 % and 0.5 % with raw
    values that are normalised before they are cut to 8 bits; 0.3 % and 0.3 % with the convolutions that `_in_bf16` names, and
    for fcn_resnet50 0.17 % instead of 0.24 % with the sums.
    """
    with _quietly():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset([_arrays(inputs) for inputs in samples])
    settings = AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        disable_bias_correction=True,  # which took 3 s and changed 0.27 % of the classes instead of 0.21 %
    )
    with _quietly():
        model = _read(storage.read(converted(bundle)))
        ignored = nncf.IgnoredScope(names=_in_bf16(model, bundle))
        return _archived(
            nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, advanced_parameters=settings, ignored_scope=ignored)
        )


def _in_bf16(model: Any, bundle: Bundle) -> list[str]:
    """The operations of a network that are worth more than 8 bits: the normalisation, the first convolutions, as far as they
    are a small share of the work, sums with what those give, and the last convolution."""
    known = model.clone()
    _reshape(known, len(bundle.bands), _example_side(bundle))
    convolutions = [op for op in known.get_ordered_ops() if op.get_type_name() in CONVOLUTIONS]
    if not convolutions:
        return []
    names = [op.get_friendly_name() for op in convolutions]
    upto = np.cumsum([math.prod(op.input_value(1).get_shape()) * _positions(op) for op in convolutions])
    kept = [*_before(convolutions[0]), *(name for name, work in zip(names, upto, strict=True) if work <= IN_BF16 * upto[-1]), names[-1]]
    return [*kept, *_sums(known, set(names) - set(kept))]


def _sums(model: Any, in_int8: set[str]) -> list[str]:
    """The sums of two activations that do not both come after a convolution in int8.

    To cut the other one to 8 bits for the sum alone OpenVINO goes through fp32 in another layout: a fifth of fcn_resnet50's time.
    """
    raw, *_ = model.inputs
    activations, cut, found = {raw.get_node().get_friendly_name()}, set[str](), list[str]()
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        taken = {given.get_source_output().get_node().get_friendly_name() for given in op.inputs()} & activations
        if taken:
            activations.add(name)
        if name in in_int8 or taken & cut:
            cut.add(name)
        if op.get_type_name() == "Add" and len(taken) == 2 and not taken <= cut:
            found.append(name)
    return found


def _positions(op: Any) -> int:
    """How often a convolution's weights are applied."""
    spread = op.get_type_name() == "ConvolutionBackpropData"  # a transposed one
    shape = op.input_value(0).get_partial_shape() if spread else op.get_output_partial_shape(0)
    return math.prod(length.get_length() for length in list(shape)[2:])


def _before(op: Any) -> set[str]:
    """The arithmetic that an operation's inputs come from."""
    sources = [given.get_source_output().get_node() for given in op.inputs()]
    found = {one.get_friendly_name() for one in sources if one.get_type_name() in ("Add", "Multiply", "Subtract")}
    return found.union(*map(_before, sources))


def _example_side(bundle: Bundle) -> int:
    return max(2 * bundle.reach.stride, 64)


def _convert(bundle: Bundle) -> Any:
    with _quietly():
        import openvino
        from openvino import frontend

    bands = len(bundle.bands)
    side = _example_side(bundle)
    ones_1C11 = torch.ones(1, bands, 1, 1)
    example = (torch.zeros(1, bands, side, side), torch.ones(1, bands, side, side, dtype=torch.uint8), ones_1C11, ones_1C11)
    try:
        with _quietly():
            model = openvino.convert_model(Program(bundle.network(), "int8").eval(), example_input=example)
    except (RuntimeError, frontend.GeneralFailure, frontend.NotImplementedFailure, frontend.OpConversionFailure) as error:
        raise Refused(f"OpenVINO cannot convert {bundle.architecture}: {_first_line(error)}") from error
    _reshape(model, bands)
    return model


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _reshape(model: Any, bands: int, side: int = -1) -> None:
    """Set the height and the width of the network's input, in place; -1: any."""
    raw, valid, factor, shift = model.inputs
    batch, each_band = [-1, bands, side, side], [1, bands, 1, 1]
    model.reshape({raw: batch, valid: batch, factor: each_band, shift: each_band})


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, warnings of what is deprecated between two libraries, and OpenVINO's usage statistics."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"  # the one switch that both OpenVINO and NNCF heed
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def _arrays(inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """A program's inputs as OpenVINO's network takes them: raw values in fp32, whatever the file's dtype."""
    raw_BCHW, *others = inputs
    return [tensor.numpy() for tensor in (raw_BCHW.float(), *others)]


def _archived(model: Any) -> bytes:
    """A model of OpenVINO in one file."""
    import openvino

    finished = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, Path(folder, "network.xml"), compress_to_fp16=False)
        with zipfile.ZipFile(finished, "w") as archive:
            for name in ("network.xml", "network.bin"):
                archive.writestr(zipfile.ZipInfo(name), Path(folder, name).read_bytes())  # without the time: same bytes twice
    return finished.getvalue()


def _read(archived: bytes) -> Any:
    """A model of OpenVINO from its file."""
    import openvino

    with zipfile.ZipFile(io.BytesIO(archived)) as archive:
        return openvino.Core().read_model(*(archive.read(f"network.{kind}") for kind in ("xml", "bin")))


def _openvino(archived: bytes, precision: str) -> Forward:
    """Compiled for every shape, which costs no speed and no memory, on one thread: a stream a core."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
    }  # fmt: skip
    model = _read(archived)
    if precision != "fp32":
        in_parts(model, quantised=precision == "int8")
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        logits_BKHW = request.infer(_arrays(inputs), share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(np.asarray(logits_BKHW))

    return forward
