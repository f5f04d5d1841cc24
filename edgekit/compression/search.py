"""Methods that choose within a budget: a step for each layer, or a format for each layer."""

from __future__ import annotations

from dataclasses import asdict

from edgekit.coding.streams import coded_bits
from edgekit.compression.job import Job, Outcome
from edgekit.methods import rate_report
from edgekit.methods.calibrate import groups_of
from edgekit.methods.examples import Examples
from edgekit.methods.masks import matrices
from edgekit.methods.rate_quantize import RateQuantizer, chosen_report
from edgekit.methods.sensitivity import choose, distance, scan, to_recipe
from edgekit.methods.training import History

BATCH = 32
"""Examples at a time."""
TRIALS = 16
"""About as many as choosing steps for a loss takes."""


def searched(job: Job) -> Outcome:
    """Chooses and applies what the method of ``job`` chooses."""
    return rate_quantized(job) if job.settings.method == "rate-quantize" else scanned(job)


def rate_quantized(job: Job) -> Outcome:
    """Rounds a model with the steps that a budget allows; the rate report is at those steps."""
    model, data, budget = job.source.module, job.data, job.settings.quantize
    assert budget is not None
    if data is None:
        quantizer, history = RateQuantizer(model, (), budget), History()
    else:
        batches = data.batches(budget.examples, BATCH)
        answer = data.objective.answer
        quantizer = RateQuantizer(model, batches, budget, lambda batch: answer(model, batch), job.progress)
        history = History(evaluations=[data.scores(job.source.name, model)])
    trials = 0

    def loss() -> float:
        nonlocal trials
        assert data is not None
        trials += 1
        job.progress("choose steps", min(1.0, trials / TRIALS))
        return data.objective.evaluate(model, data.evaluation)["loss"]

    if budget.loss is not None:
        before = history.evaluations[0]["loss"]
        # An encoder is its own reference: its loss is a distance to it, and begins at zero.
        limit = budget.loss if before < 1e-6 else before * (1 + budget.loss)
        chosen = quantizer.within_loss(loss, limit)
    else:
        chosen = quantizer.within_bits(8 * budget.bytes if budget.bytes else (budget.bits or 0) * quantizer.count)
    quantizer.apply(chosen)
    if data is not None:
        history.evaluations.append(data.scores(f"{job.source.name}, compressed", model))
    names = {id(p): n for n, p in model.named_parameters()}
    steps = {names[id(layer.parameter)]: choice.step for layer, choice in zip(quantizer.layers, chosen, strict=True)}
    weights = {name: weight.detach() for name, weight in matrices(model).items()}
    report = rate_report(weights, {n: steps.get(n, job.settings.report_step) for n in weights}, coded_bits)
    return Outcome(job.source, history, chosen_report(quantizer.layers, chosen), rate=report)


def scanned(job: Job) -> Outcome:
    """What the sensitivity scan chose for each group of layers; the model stays as it is."""
    model, data, budget, calibration = job.source.module, job.data, job.settings.sensitivity, job.settings.calibration
    assert budget is not None and data is not None
    history = History(evaluations=[data.scores(job.source.name, model)])
    groups = groups_of(model, data.batches(calibration.examples, calibration.batch)[0], calibration.exclude)
    examples = Examples(data.train.select(slice(0, budget.examples)))
    table = scan(groups, distance(data.objective, model, examples), progress=job.progress)
    count = sum(layer.weight.numel() for group in groups for layer in group.values())
    chosen = choose(table, budget.bytes or int(budget.bits * count / 8))
    layers = [
        {"layer": name, "format": option[0], "block_size": option[1], **asdict(table[name][option])}
        for name, option in chosen.items()
    ]
    return Outcome(job.source, history, layers, to_recipe(chosen, job.settings.method))
