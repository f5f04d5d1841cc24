package dev.edgekit

import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.log10
import kotlin.math.sqrt

/**
 * How far a golden vector's answer is from that of the compressed model in PyTorch.
 *
 * [sqnrDb] is signal over squared error, at most 200 dB; [top1], of decoders and classifiers, the share of positions with the same
 * likeliest token or class. [metrics] has all that was measured by the names that recipes use. [passed]: everything measured is within
 * the recipe's limits, and the vector's input is no random one, which proves too little to pass.
 */
public class ParityResult internal constructor(public val metrics: Map<String, Double>, limits: Limits, random: Boolean) {
    public val maxAbs: Double = metrics.getValue("max_abs")
    public val sqnrDb: Double = metrics.getValue("sqnr_db")
    public val cosine: Double = metrics.getValue("cosine")
    public val top1: Double? = metrics["top1"]
    public val passed: Boolean = !random && withinLimits(metrics, limits)
}

/** NaN is within no limit. */
private fun withinLimits(metrics: Map<String, Double>, limits: Limits): Boolean {
    val upper = mapOf("max_abs" to limits.maxAbs, "kl" to limits.kl, "perplexity_ratio" to limits.perplexityRatio)
    val lower = mapOf("sqnr_db" to limits.sqnrDb, "cosine" to limits.cosine, "top1" to limits.top1)
    fun holds(bounds: Map<String, Double?>, within: (Double, Double) -> Boolean): Boolean =
        bounds.all { (name, limit) -> limit == null || metrics[name]?.let { within(it, limit) } ?: true }
    return holds(upper) { value, limit -> value <= limit } && holds(lower) { value, limit -> value >= limit }
}

/** What was measured of an [answer] to a golden [vector] of a model without a cache. Throws [BundleException] when they do not fit. */
internal fun sampleMetrics(task: String, vector: Map<String, Tensor>, answer: Map<String, Tensor>, margin: Double): Map<String, Double> {
    val names = answer.keys.filter { "$COMPRESSED$it" in vector }
    if (names.isEmpty()) throw BundleException("golden vector: holds none of the outputs ${answer.keys}; export again")
    val each = names.map { name ->
        val expected = vector.getValue("$COMPRESSED$name")
        val found = answer.getValue(name)
        if (!expected.shape.contentEquals(found.shape)) {
            throw BundleException("golden vector: $name is $expected there, the graph answers $found; export again")
        }
        tensorDistance(valid(vector, expected), valid(vector, found))
    }
    val metrics = linkedMapOf(
        "max_abs" to each.maxOf { it.getValue("max_abs") },
        "sqnr_db" to each.minOf { it.getValue("sqnr_db") },
        "cosine" to each.minOf { it.getValue("cosine") },
    )
    val classes = names.firstOrNull { answer.getValue(it).shape.size == 2 }
    if (task == "image-classification" && classes != null) {
        metrics += classDistance(vector.getValue("$COMPRESSED$classes"), answer.getValue(classes), margin)
    }
    return metrics
}

/** What was measured of a decoder's [answer] (see [replayText]) to a golden text. */
internal fun textMetrics(vector: Map<String, Tensor>, answer: Map<String, Tensor>, margin: Double): Map<String, Double> {
    fun expected(name: String) = vector["$COMPRESSED$name"] ?: throw BundleException("golden vector: no $COMPRESSED$name; export again")
    val logits = tensorDistance(expected("logits").floats(), answer.getValue("logits").floats())
    val at = rows(answer.getValue("at.compressed"))
    val ours = answer.getValue("logsumexp").floats()
    val values = rows(expected("top_values"))
    val theirs = expected("logsumexp").floats()
    if (values.size != at.size || values.first().size != at.first().size || theirs.size != ours.size) {
        throw BundleException("golden vector: top_values and logsumexp are not of as many positions as the text; export again")
    }
    if (ours.any { !it.isFinite() }) {
        return logits + mapOf("max_abs" to INFINITY, "top1" to 0.0, "kl" to INFINITY, "perplexity_ratio" to INFINITY)
    }
    val width = values.first().size
    val indices = expected("top_indices").longs()
    val found = answer.getValue("top_indices").longs()
    val changed = values.indices.count { indices[it * width] != found[it] && lead(values[it]) > margin }
    val kl = values.indices.map { divergence(minus(values[it], theirs[it]), minus(at[it], ours[it])) }.average()
    val worse = mean(answer.getValue("nll").floats()) - mean(expected("nll").floats())
    val farthest = values.indices.maxOf { row -> values[row].indices.maxOf { abs(values[row][it] - at[row][it]) } }
    return logits + mapOf(
        "max_abs" to maxOf(logits.getValue("max_abs"), farthest),
        "top1" to 1.0 - changed.toDouble() / values.size,
        "kl" to kl,
        "perplexity_ratio" to exp(minOf(worse, LARGEST_EXPONENT)),
    )
}

/** `max_abs`, `sqnr_db` and `cosine` of as many floats; NaN or infinity in [found] can never pass. */
internal fun tensorDistance(reference: FloatArray, found: FloatArray): Map<String, Double> {
    if (reference.size != found.size) {
        throw BundleException("golden vector: ${reference.size} values, the graph answers ${found.size}; export again")
    }
    if (found.any { !it.isFinite() }) return mapOf("max_abs" to INFINITY, "sqnr_db" to -MOST_DECIBELS, "cosine" to 0.0)
    var signal = 0.0
    var power = 0.0
    var product = 0.0
    var noise = 0.0
    var largest = 0.0
    for (index in found.indices) {
        val a = reference[index].toDouble()
        val b = found[index].toDouble()
        signal += a * a
        power += b * b
        product += a * b
        noise += (a - b) * (a - b)
        largest = maxOf(largest, abs(a - b))
    }
    val lengths = sqrt(signal * power)
    val cosine = if (lengths > 0) product / lengths else if (noise == 0.0) 1.0 else 0.0
    return mapOf("max_abs" to largest, "sqnr_db" to decibels(signal, noise), "cosine" to cosine)
}

private fun decibels(signal: Double, noise: Double): Double =
    if (noise == 0.0) MOST_DECIBELS else (10 * log10(maxOf(signal, 1e-300) / noise)).coerceIn(-MOST_DECIBELS, MOST_DECIBELS)

private fun classDistance(reference: Tensor, found: Tensor, margin: Double): Map<String, Double> {
    val expected = rows(reference)
    val answers = rows(found)
    if (answers.any { row -> row.any { !it.isFinite() } }) return mapOf("top1" to 0.0, "kl" to INFINITY)
    val changed = expected.indices.count { likeliest(expected[it]) != likeliest(answers[it]) && lead(expected[it]) > margin }
    return mapOf(
        "top1" to 1.0 - changed.toDouble() / expected.size,
        "kl" to expected.indices.map { divergence(logSoftmax(expected[it]), logSoftmax(answers[it])) }.average(),
    )
}

/** D(p || q) in nats from logarithms; what both leave over is one more class. */
private fun divergence(logP: DoubleArray, logQ: DoubleArray): Double {
    val restP = maxOf(1 - logP.sumOf { exp(it) }, LEAST_REST)
    val restQ = maxOf(1 - logQ.sumOf { exp(it) }, LEAST_REST)
    val sum = logP.indices.sumOf { exp(logP[it]) * (logP[it] - logQ[it]) }
    return maxOf(sum + restP * ln(restP / restQ), 0.0)
}

private fun logSoftmax(row: DoubleArray): DoubleArray {
    val shifted = minus(row, row.max().toFloat())
    return minus(shifted, ln(shifted.sumOf { exp(it) }))
}

/** How far the largest value is above the second. */
private fun lead(row: DoubleArray): Double {
    if (row.size < 2) return INFINITY
    val (second, first) = row.sorted().takeLast(2)
    return first - second
}

private fun likeliest(row: DoubleArray): Int = row.indices.maxByOrNull { row[it] } ?: 0

/** An output's values, those at padded tokens left out: nobody reads them and nothing trains them. */
private fun valid(vector: Map<String, Tensor>, output: Tensor): FloatArray {
    val mask = vector["input.attention_mask"]
    val shape = output.shape
    if (mask == null || shape.size < 3 || !shape.copyOf(2).contentEquals(mask.shape)) return output.floats()
    val used = mask.longs()
    val values = output.floats()
    val width = values.size / maxOf(used.size, 1)
    return used.indices.filter { used[it] != 0L }.flatMap { values.copyOfRange(it * width, (it + 1) * width).asList() }.toFloatArray()
}

private fun rows(tensor: Tensor): List<DoubleArray> {
    if (tensor.shape.size != 2 || tensor.count == 0) {
        throw BundleException("golden vector: $tensor, two dimensions are expected; export again")
    }
    val values = tensor.floats()
    val width = tensor.shape[1].toInt()
    return List(tensor.shape[0].toInt()) { row -> DoubleArray(width) { values[row * width + it].toDouble() } }
}

private fun minus(row: DoubleArray, number: Float): DoubleArray = minus(row, number.toDouble())

private fun minus(row: DoubleArray, number: Double): DoubleArray = DoubleArray(row.size) { row[it] - number }

private fun mean(values: FloatArray): Double = values.sumOf { it.toDouble() } / values.size

private const val COMPRESSED = "compressed."
private const val MOST_DECIBELS = 200.0
private const val INFINITY = Double.POSITIVE_INFINITY
private const val LARGEST_EXPONENT = 700.0
private const val LEAST_REST = 1e-12
