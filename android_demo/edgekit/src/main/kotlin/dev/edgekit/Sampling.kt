package dev.edgekit

import java.util.Random
import kotlin.math.exp

/**
 * Choosing the next token from logits, in transformers' order: temperature, top-k, top-p. [temperature] 0 takes the likeliest; [topK] 0 and
 * [topP] 1 consider all tokens; without [seed] every text is another one.
 *
 * Throws [UsageException] for numbers outside their range.
 */
internal class Sampling(private val temperature: Float, private val topK: Int, private val topP: Float, seed: Long?) {
    private val random = if (seed == null) Random() else Random(seed)

    init {
        if (!(temperature >= 0)) throw UsageException("temperature: $temperature is negative; 0 takes the likeliest token, 0.7 is usual")
        if (topK < 0) throw UsageException("topK: $topK is negative; 0 considers all tokens")
        if (!(topP > 0 && topP <= 1)) throw UsageException("topP: $topP is outside (0, 1]; 1 considers all tokens")
        if (seed != null && seed < 0) throw UsageException("seed: $seed is negative")
    }

    /** The next token. */
    fun draw(logits: FloatArray): Int {
        if (temperature == 0f) return Decoder.likeliest(logits)
        val chances = probabilities(logits)
        var left = random.nextDouble()
        var last = Decoder.likeliest(logits)
        for (index in chances.indices) {
            if (chances[index] == 0.0) continue
            last = index
            left -= chances[index]
            if (left < 0) break
        }
        return last
    }

    /** What [draw] draws from: zero where top-k or top-p exclude a token. */
    fun probabilities(logits: FloatArray): DoubleArray {
        val scaled = DoubleArray(logits.size) { logits[it].toDouble() / temperature }
        if (topK in 1 until scaled.size) {
            val least = atRank(scaled, topK)
            for (index in scaled.indices) if (scaled[index] < least) scaled[index] = Double.NEGATIVE_INFINITY
        }
        val peak = scaled.max()
        for (index in scaled.indices) scaled[index] = exp(scaled[index] - peak)
        normalize(scaled)
        if (topP < 1) {
            keepNucleus(scaled)
            normalize(scaled)
        }
        return scaled
    }

    /** The [rank]th largest value, by a list of the best so far: few values ever get in. */
    private fun atRank(values: DoubleArray, rank: Int): Double {
        val best = DoubleArray(rank) { Double.NEGATIVE_INFINITY } // ascending
        for (value in values) {
            if (value <= best[0]) continue
            val found = best.binarySearch(value)
            val place = (if (found < 0) -found - 1 else found) - 1
            best.copyInto(best, 0, 1, place + 1)
            best[place] = value
        }
        return best[0]
    }

    private fun keepNucleus(chances: DoubleArray) {
        // All tokens below this together are less than what top-p leaves out, so only the others need sorting.
        val negligible = (1.0 - topP) / chances.size
        val candidates = chances.indices.filter { chances[it] >= negligible }.sortedByDescending { chances[it] }
        val kept = DoubleArray(chances.size)
        var before = 0.0
        for (index in candidates) {
            if (before >= topP) break
            kept[index] = chances[index]
            before += chances[index]
        }
        kept.copyInto(chances)
    }

    private fun normalize(chances: DoubleArray) {
        val sum = chances.sum()
        for (index in chances.indices) chances[index] /= sum
    }
}
