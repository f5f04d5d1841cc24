package dev.edgekit

import kotlin.math.exp
import kotlin.math.ln

/**
 * A golden text the way docs/runner.md has it: all but the last tokens in pieces, those one by one through the cache.
 *
 * Gives `top_indices` int64 [T], `logsumexp` float32 [T], `nll` float32 [T-1], `at.original` and `at.compressed` float32 [T, n], and
 * `logits` float32 [steps + 1, V] of the last positions. Throws [BundleException] for a vector that is none of a decoder.
 */
internal fun replayText(decoder: Decoder, vector: Map<String, Tensor>): Map<String, Tensor> {
    val ids = idsOf(vector)
    val kept = minOf((vector["compressed.logits"]?.shape?.firstOrNull() ?: broken("compressed.logits")).toInt(), ids.size)
    val summary = Summary(ids, kept, decoder.logits.size, listOf("original", "compressed").associateWith { Wanted(vector, it, ids.size) })
    val first = maxOf(1, ids.size - (kept - 1))
    val source = sourceOf(vector)
    if (source.isEmpty()) decoder.reset() else decoder.encode(source)
    for (start in 0 until first step Spec.REPLAY_PIECE) decoder.feedAll(ids, start, minOf(start + Spec.REPLAY_PIECE, first), summary::add)
    for (start in first until ids.size) decoder.feedAll(ids, start, start + 1, summary::add)
    return summary.arrays()
}

/** The tokens whose logits a reference model wants at each position, [width] of them. */
private class Wanted(vector: Map<String, Tensor>, who: String, positions: Int) {
    private val tokens: LongArray
    val width: Int
    val found: FloatArray

    init {
        val given = vector["$who.top_indices"] ?: broken("$who.top_indices")
        if (given.shape.size != 2 || given.shape[0] != positions.toLong()) broken("$who.top_indices of $positions positions")
        tokens = given.longs()
        width = given.shape[1].toInt()
        found = FloatArray(tokens.size)
    }

    fun add(position: Int, logits: FloatArray) {
        for (index in position * width until (position + 1) * width) {
            val token = tokens[index]
            if (token !in logits.indices) beyond(token, logits.size)
            found[index] = logits[token.toInt()]
        }
    }
}

/** Next-token predictions in short, collected position by position. */
private class Summary(private val ids: IntArray, private val kept: Int, vocabulary: Int, private val wanted: Map<String, Wanted>) {
    private val top = LongArray(ids.size)
    private val logsumexp = FloatArray(ids.size)
    private val nll = FloatArray(ids.size - 1)
    private val last = Tensor.zeros(DType.FLOAT32, kept.toLong(), vocabulary.toLong())
    private val lastValues = last.data.asFloatBuffer()

    fun add(position: Int, logits: FloatArray) {
        top[position] = Decoder.likeliest(logits).toLong()
        logsumexp[position] = logSumExp(logits)
        if (position + 1 < ids.size) {
            val next = ids[position + 1]
            if (next !in logits.indices) beyond(next.toLong(), logits.size)
            nll[position] = logsumexp[position] - logits[next]
        }
        wanted.values.forEach { it.add(position, logits) }
        if (position >= ids.size - kept) lastValues.put(logits)
    }

    fun arrays(): Map<String, Tensor> {
        val length = ids.size.toLong()
        val arrays = linkedMapOf(
            "top_indices" to Tensor.of(top, length),
            "logsumexp" to Tensor.of(logsumexp, length),
            "nll" to Tensor.of(nll, length - 1),
        )
        for ((who, tokens) in wanted) arrays["at.$who"] = Tensor.of(tokens.found, length, tokens.width.toLong())
        arrays["logits"] = last
        return arrays
    }

    /** With the largest subtracted; each exponential as a float, the sum in double. */
    private fun logSumExp(logits: FloatArray): Float {
        val peak = logits[Decoder.likeliest(logits)]
        var sum = 0.0
        for (value in logits) sum += exp(value - peak)
        return ln(sum).toFloat() + peak
    }
}

private fun beyond(token: Long, vocabulary: Int): Nothing =
    throw BundleException("golden vector: token $token, the vocabulary has $vocabulary; export the model again")

private fun broken(what: String): Nothing = throw BundleException("golden vector: no $what; export the model again")
