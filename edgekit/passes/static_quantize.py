"""INT8 with calibrated ranges (QDQ) for convolutional nets, by ONNX Runtime's own quantizer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError, one_line
from edgekit.passes.stock_layers import stock_layers
from edgekit.recipe import StaticQuantization
from edgekit.spec.facts import facts_of


def quantize_static(
    model: ir.Model, settings: StaticQuantization, samples: Sequence[Mapping[str, np.ndarray]]
) -> ir.Model:
    """Quantizes weights and activations of convolutions and matrix products; ranges come from ``samples``.

    Weights are rounded to 7 bits of an int8 (``reduce_range``) where activations are uint8: their products then cannot
    saturate the 16-bit sums of AVX2 and AVX-512 machines without VNNI, so every x86 gives the same answer. See
    docs/adr/0012. Raises UnsupportedError when ONNX Runtime's quantizer refuses the graph.
    """
    import onnxruntime.quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kinds = {"int8": q.QuantType.QInt8, "uint8": q.QuantType.QUInt8}
    methods = q.CalibrationMethod
    method = {"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[settings.method]
    with tempfile.TemporaryDirectory() as scratch, _silent():
        plain, ready, done = (Path(scratch) / name for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        ir.save(model, plain)
        try:
            # Folds batch norms into convolutions and infers shapes.
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            q.quantize_static(
                ready,
                done,
                _Reader(samples),
                quant_format=q.QuantFormat.QDQ,
                per_channel=settings.per_channel,
                activation_type=kinds[settings.activations],
                weight_type=kinds[settings.weights],
                reduce_range=settings.activations == "uint8",
                calibrate_method=method,
            )
        except Exception as error:  # the quantizer raises plain Exception
            raise UnsupportedError(f"calibrated quantization failed: {one_line(error)}") from error
        result = ir.load(done)
        ir.external_data.load_to_model(result)
    result.metadata_props.update(model.metadata_props)
    facts_of(result).dead_units = facts_of(model).dead_units
    facts_of(result).layers = list(stock_layers(result, calibrated=True))
    return result


class _Reader:
    """Hands one sample after the other to the calibrator."""

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._samples: Iterator[Mapping[str, np.ndarray]] = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        sample = next(self._samples, None)
        return dict(sample) if sample is not None else None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The quantizer logs advice about steps that were taken here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
